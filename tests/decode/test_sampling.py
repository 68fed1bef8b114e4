"""Sampling is a pure function with the right distribution, and its filters are the field's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from lightwork.decode.sampling import Sampling, gumbel, log_softmax, pick
from lightwork.errors import InvariantError, RangeError

LOGITS = np.array([2.0, 1.0, 0.5, 0.0, -1.0, 3.0], np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(x))


def draws(how: Sampling, n: int = 20_000) -> np.ndarray:
    return np.bincount([pick(LOGITS, how, p, (), ()).token for p in range(n)], minlength=len(LOGITS))


def test_samples_follow_the_softmax() -> None:
    counts = draws(Sampling(seed=3))
    assert chisquare(counts, softmax(LOGITS) * counts.sum()).pvalue > 0.01


def test_temperature_sharpens() -> None:
    counts = draws(Sampling(seed=4, temperature=0.5))
    assert chisquare(counts, softmax(LOGITS / 0.5) * counts.sum()).pvalue > 0.01


def test_noise_differs_between_seeds_and_positions_and_repeats_for_equal_ones() -> None:
    ids = np.arange(1000)
    assert np.array_equal(gumbel(1, 2, ids), gumbel(1, 2, ids))
    assert abs(np.corrcoef(gumbel(1, 2, ids), gumbel(1, 3, ids))[0, 1]) < 0.1
    assert abs(np.corrcoef(gumbel(1, 2, ids), gumbel(2, 2, ids))[0, 1]) < 0.1
    assert np.array_equal(gumbel(1, 2, ids)[::7], gumbel(1, 2, ids[::7]))


@pytest.mark.parametrize(
    ("how", "allowed"),
    [
        (Sampling(top_k=2), {5, 0}),
        (Sampling(top_p=0.6), {5}),
        (Sampling(top_p=0.7), {5, 0}),
        (Sampling(min_p=0.3), {5, 0}),
        (Sampling(top_k=1), {5}),
        (Sampling(temperature=0.0), {5}),
    ],
    ids=repr,
)
def test_filters_leave_only_what_they_should(how: Sampling, allowed: set[int]) -> None:
    assert set(np.flatnonzero(draws(how, 500))) == allowed


def test_penalties_and_bias_act_on_scores() -> None:
    def greedy(**settings: object) -> int:
        return pick(LOGITS, Sampling(temperature=0.0, **settings), 9, (5,), (0, 0)).token  # type: ignore[arg-type]

    assert greedy() == 5
    assert greedy(repetition_penalty=4.0) == 1
    assert greedy(logit_bias=((3, 100.0),)) == 3
    assert greedy(logit_bias=((5, -100.0),), frequency_penalty=0.6) == 1
    assert greedy(logit_bias=((5, -100.0),), presence_penalty=0.9) == 0


def test_logprobs_are_the_models_own() -> None:
    chosen = pick(LOGITS, Sampling(temperature=0.7, seed=1, logprobs=3, logit_bias=((4, 50.0),)), 0, (), ())
    expected = log_softmax(LOGITS)
    assert chosen.token == 4
    assert chosen.logprob == pytest.approx(expected[4])
    assert [t for t, _ in chosen.top] == [5, 0, 1]
    assert chosen.top[0][1] == pytest.approx(expected[5])


@given(
    logits=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40),
    seed=st.integers(-(2**70), 2**70),
    top_p=st.floats(0.001, 1.0),
    top_k=st.integers(0, 50),
    min_p=st.floats(0.0, 1.0),
)
def test_any_settings_choose_a_token(
    logits: list[float], seed: int, top_p: float, top_k: int, min_p: float
) -> None:
    how = Sampling(seed=seed, top_p=top_p, top_k=top_k, min_p=min_p)
    assert 0 <= pick(np.array(logits, np.float32), how, 5, (), ()).token < len(logits)


def test_scores_that_are_not_numbers_are_an_error() -> None:
    with pytest.raises(InvariantError, match="not finite"):
        pick(np.array([np.nan, 1.0]), Sampling(), 0, (), ())


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 2},
        {"min_p": -0.1},
        {"logprobs": 21},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(RangeError, match=next(iter(settings))):
        Sampling(**settings)  # type: ignore[arg-type]
