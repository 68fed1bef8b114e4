"""What Duo-LLM's claims are computed with, without their model: budgets, intervals, prices."""

from __future__ import annotations

import pytest
import torch

from lightwork.claims import Lab
from lightwork.claims._duo import LAYERS, Found, texts
from lightwork.claims.duo_llm import bytes_saved_are_time_saved
from lightwork.models.duo import BIG
from lightwork.models.duo_oracle import every_pattern


@pytest.fixture(scope="module")
def some() -> Found:
    """Forty tokens of eight texts under losses at random."""
    patterns = every_pattern(LAYERS)
    rng = torch.Generator().manual_seed(0)
    return Found(
        losses=torch.rand((40, len(patterns)), generator=rng),
        patterns=patterns,
        num_big=(patterns == BIG).sum(1),
        text=torch.arange(40) // 5,
        best_fixed=[2**k - 1 for k in range(LAYERS + 1)],
        routed=[torch.full((40,), 2**k - 1) for k in range(LAYERS + 1)],
    )


def test_everyone_is_compared_at_one_budget(some: Found) -> None:
    for k in range(LAYERS + 1):
        assert some.num_big[some.best_fixed[k]] == k
        assert (some.oracle(k) <= some.fixed(k)).all()
        assert (some.oracle(k) <= some.random(k)).all()
        assert torch.equal(some.fixed(k), some.router(k))


def test_an_interval_holds_the_ratio_of_means_and_narrows_with_what_is_compared(some: Found) -> None:
    low, high = some.interval(some.fixed(3), some.random(3))
    assert low < float(some.fixed(3).mean() / some.random(3).mean()) < high
    assert some.interval(some.fixed(3), some.fixed(3)) == (1.0, 1.0)


def test_judged_places_stand_before_scored_tokens_and_repeat_with_their_name() -> None:
    (first, places), (again, same) = next(texts("a")), next(texts("a"))
    assert torch.equal(first, again)
    assert places == same == sorted(set(places))
    assert places[-1] < len(first) - 1
    assert not torch.equal(first, next(texts("b"))[0])


def test_bytes_saved_are_time_saved_on_a_device_bound_by_them() -> None:
    assert bytes_saved_are_time_saved(Lab()).value == pytest.approx(1.0, abs=0.15)
