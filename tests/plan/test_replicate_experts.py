"""Copies of hot experts: how even ranks become, with how many of them."""

from __future__ import annotations

import numpy as np
import pytest

from lightwork.errors import RangeError
from lightwork.plan.replicate_experts import Replicas, migrated, replicate


def zipf(num_experts: int, exponent: float = 1.0, seed: int = 0) -> list[float]:
    loads = np.arange(1, num_experts + 1) ** -exponent
    return np.random.default_rng(seed).permutation(1e6 * loads / loads.sum()).tolist()


@pytest.mark.parametrize(("num_experts", "num_ranks"), [(64, 8), (128, 16), (256, 32), (256, 64)])
def test_a_zipf_router_is_even_with_a_quarter_more_experts(num_experts: int, num_ranks: int) -> None:
    rows = zipf(num_experts)
    one_each = replicate(rows, num_ranks, most_extra=0.0)
    found = replicate(rows, num_ranks)
    assert one_each.imbalance(rows) > 1.5
    assert found.imbalance(rows) <= 1.2
    assert found.extra <= 0.25


def test_every_expert_is_somewhere_and_no_rank_has_more_places_than_others() -> None:
    rows = zipf(64, 1.2)
    found = replicate(rows, 8)
    held = np.zeros(8, np.int64)
    for ranks in found.ranks_of:
        assert len({*ranks}) == len(ranks) >= 1
        held[list(ranks)] += 1
    assert held.max() <= -(-found.num_copies // 8)
    assert found.rows_of(rows).sum() == pytest.approx(sum(rows))
    busiest = int(np.argmax(rows))
    assert len(found.ranks_of[busiest]) == max(len(ranks) for ranks in found.ranks_of) > 1


def test_even_loads_need_no_copy() -> None:
    found = replicate([3.0] * 16, 4)
    assert (found.extra, found.imbalance([3.0] * 16)) == (0.0, 1.0)


def test_what_cannot_be_reached_comes_as_near_as_it_can() -> None:
    rows = [1000.0] + [1.0] * 7
    found = replicate(rows, 8, target=1.01, most_extra=0.25)
    assert found.extra <= 0.25
    assert 1.01 < found.imbalance(rows) < replicate(rows, 8, most_extra=0.0).imbalance(rows)


def test_rebalancing_moves_what_was_elsewhere() -> None:
    before = Replicas(ranks_of=((0,), (1,), (0, 1)), num_ranks=2)
    after = Replicas(ranks_of=((0, 1), (1,), (1,)), num_ranks=2)
    assert migrated(before, after) == 1
    assert migrated(before, before) == 0


def test_too_few_experts_or_rows_are_refused() -> None:
    with pytest.raises(RangeError, match="2 experts of 2 rows on 3 ranks"):
        replicate([1.0, 1.0], 3)
    with pytest.raises(RangeError, match="3 experts of 0 rows"):
        replicate([0.0] * 3, 2)
