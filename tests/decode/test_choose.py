"""The choices of a whole step are those of `sampling.pick`, row by row."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from lightwork.decode import choose as choosing
from lightwork.decode.choose import choose, compiled
from lightwork.decode.sampling import Sampling, pick
from lightwork.errors import InvariantError

needs_numba = pytest.mark.skipif(find_spec("numba") is None, reason="needs numba")


def some_logits(rng: np.random.Generator, n: int, v: int) -> np.ndarray:
    """Rows from flat to peaked, some quantised so that tokens tie, some with masked tokens."""
    x = rng.normal(0, rng.choice([0.01, 1, 3, 10], (n, 1)), (n, v)).astype(np.float32)
    ties = rng.random(n) < 0.3
    x[ties] = np.round(x[ties] * 4) / 4
    x[:, rng.random(v) < 0.1] = -np.inf
    x[:, 0] = 0.5
    return x


def some_sampling(rng: np.random.Generator) -> Sampling:
    return Sampling(
        temperature=float(rng.choice([0.0, 0.2, 0.7, 1.0, 3.0])),
        top_k=int(rng.choice([0, 0, 1, 5, 40, 5000])),
        top_p=float(rng.choice([1.0, 1.0, 0.95, 0.5, 0.05])),
        min_p=float(rng.choice([0.0, 0.0, 0.05, 1.0])),
        seed=int(rng.integers(0, 1 << 62)) * int(rng.choice([1, -1, 7])),
    )


def wants(logits: np.ndarray, hows: list[Sampling], positions: list[int]) -> list[int]:
    return [pick(row, h, p, (), ()).token for row, h, p in zip(logits, hows, positions, strict=True)]


@pytest.mark.parametrize("v", [1, 7, 255, 256, 1000, 4097])
def test_tokens_are_those_of_numpy(v: int) -> None:
    rng = np.random.default_rng(v)
    left = 0
    for _ in range(20):
        logits = some_logits(rng, 32, v)
        hows = [some_sampling(rng) for _ in logits]
        positions = rng.integers(0, 1 << 20, len(logits)).tolist()
        got = choose(logits, hows, positions)
        left += sum(t < 0 for t in got)
        expected = wants(logits, hows, positions)
        assert [e if g < 0 else g for g, e in zip(got, expected, strict=True)] == expected
    assert compiled() is None or left < 20 * 32 / 4


@needs_numba
@pytest.mark.parametrize(
    "settings",
    [{}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.02}, {"top_k": 50, "top_p": 0.8, "min_p": 0.01}],
    ids=repr,
)
def test_no_row_of_an_ordinary_model_is_left_to_numpy(settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 4, (16, 32_000)).astype(np.float32)
    for at in range(0, 160, 16):
        hows = [Sampling(temperature=0.8, seed=at + i, **settings) for i in range(16)]
        positions = [at] * 16
        assert choose(logits, hows, positions) == wants(logits, hows, positions)


@needs_numba
def test_a_tie_of_everything_is_decided_by_noise_or_left_to_numpy() -> None:
    logits = np.zeros((64, 500), np.float32)
    hows = [Sampling(seed=i, top_p=0.5) for i in range(64)]
    expected = wants(logits, hows, [3] * 64)
    got = choose(logits, hows, [3] * 64)
    assert all(g in (-1, e) for g, e in zip(got, expected, strict=True))
    plain = [Sampling(seed=i) for i in range(64)]
    assert choose(logits, plain, [3] * 64) == wants(logits, plain, [3] * 64)


@pytest.mark.parametrize(
    "how",
    [Sampling(frequency_penalty=1.0), Sampling(logit_bias=((1, 2.0),)), Sampling(temperature=1e-9)],
    ids=repr,
)
def test_what_depends_on_the_text_is_left(how: Sampling) -> None:
    assert choose(np.ones((2, 9), np.float32), [how, Sampling(temperature=0)], [4, 4]) == [-1, 0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
def test_scores_that_are_not_finite_are_left_to_the_one_who_complains(bad: float, temperature: float) -> None:
    logits = np.ones((2, 300), np.float32)
    logits[0, 299] = bad
    how = Sampling(temperature=temperature)
    assert choose(logits, [how, Sampling(temperature=0)], [4, 4]) == [-1, 0]
    with pytest.raises(InvariantError, match="not finite"):
        pick(logits[0], how, 4, (), ())


def test_without_numba_sampled_rows_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "compiled", lambda: None)
    logits = np.arange(12, dtype=np.float32).reshape(2, 6)
    assert choose(logits, [Sampling(), Sampling(temperature=0.0)], [1, 1]) == [-1, 5]
