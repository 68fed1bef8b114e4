"""The lossy verifier keeps guesses that are nearly as good, says nothing else, and with beta 1 is exact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from lightwork.decode.proposers import Draft
from lightwork.decode.sampling import Pick, Sampling, describe, pick
from lightwork.decode.verifiers.match import Match
from lightwork.decode.verifiers.relaxed_lossy import RelaxedLossy
from lightwork.errors import RangeError

V = 8


class Rows:
    """Scores behind every node of a draft: the root's first."""

    def __init__(self, logits: np.ndarray, how: Sampling) -> None:
        self.logits, self.how = logits, how

    def __call__(self, node: int, emitted: Sequence[int], top: int | None = None) -> Pick:
        chosen = pick(self.logits[node + 1], self.how, len(emitted), (), list(emitted))
        return chosen if top is None else describe(self.logits[node + 1], chosen.token, top)


def draft_of(rng: np.random.Generator, num: int = 12) -> Draft:
    parents = tuple(int(rng.integers(-1, i)) for i in range(num))
    return Draft(tuple(rng.integers(0, V, num).tolist()), parents)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_token_that_may_stand_is_exact_verification(temperature: float) -> None:
    rng = np.random.default_rng(0)
    for seed in range(100):
        draft, logits = draft_of(rng), rng.normal(size=(13, V)).astype(np.float32)
        rows = Rows(logits, Sampling(temperature=temperature, seed=seed))
        assert RelaxedLossy(beta=1).verify(draft, rows) == Match().verify(draft, rows)


def rows(*behind: Sequence[float], how: Sampling | None = None) -> Rows:
    return Rows(np.array(behind, np.float32), how or Sampling(temperature=0.0))


def test_a_guess_stands_if_it_is_among_the_best_and_close() -> None:
    scores = rows([3.0, 2.5, 2.0, -1.0], [0.0, 0.0, 5.0, 0.0], [9.0, 0.0, 0.0, 0.0])
    draft = Draft.chain([1, 2])
    verdict = RelaxedLossy(beta=2, tau=1.0).verify(draft, scores)
    assert [p.token for p in verdict.emitted] == [1, 2, 0]
    assert verdict.path == (0, 1)
    assert RelaxedLossy(beta=2, tau=0.4).verify(draft, scores).path == ()
    third = Draft.chain([2])
    assert RelaxedLossy(beta=2, tau=2.0).verify(third, scores).path == ()
    assert RelaxedLossy(beta=3, tau=2.0).verify(third, scores).path == (0,)


def test_the_targets_own_choice_comes_first_and_then_the_more_probable_guess() -> None:
    scores = rows([3.0, 2.5, 2.8, 0.0], *[[0.0, 0.0, 0.0, 9.0]] * 3)
    both = Draft((1, 2), (-1, -1))
    assert RelaxedLossy(beta=3).verify(both, scores).path == (1,)
    assert RelaxedLossy(beta=3).verify(Draft((1, 0), (-1, -1)), scores).path == (1,)


def test_what_is_told_of_a_kept_guess_is_its_own_probability() -> None:
    scores = rows([3.0, 2.5, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0], how=Sampling(temperature=0.0, logprobs=1))
    told = RelaxedLossy().verify(Draft.chain([1]), scores).emitted[0]
    wanted = describe(scores.logits[0], 1, 1)
    assert told == wanted


def test_where_sampling_took_another_token_only_that_one_stands() -> None:
    """Otherwise a sampled text would be pulled towards the guesses."""
    logits = np.array([[1.0, 0.9, 0.8, 0.7], [0.0, 0.0, 0.0, 0.0]], np.float32)
    for seed in range(40):
        scores = Rows(logits, Sampling(temperature=1.0, seed=seed))
        chosen = scores(-1, ()).token
        if chosen:
            other = Draft.chain([1 if chosen != 1 else 2])
            assert RelaxedLossy(beta=4, tau=9.0).verify(other, scores) == Match().verify(other, scores)


@pytest.mark.parametrize("settings", [{"beta": 0}, {"tau": -1.0}, {"tau": float("inf")}], ids=str)
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(RangeError, match="RelaxedLossy"):
        RelaxedLossy(**settings)  # type: ignore[arg-type]
