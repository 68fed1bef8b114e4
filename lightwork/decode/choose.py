"""The tokens of many rows at once, each equal to `sampling.pick`.

Greedy rows are one argmax. Sampled rows take a compiled pass (kernels/cpu/pick.py); without numba, and where
a comparison is closer than its rounding, they are left to `sampling.pick`.

N rows, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import isfinite

import numpy as np

from lightwork.decode.sampling import Floats, Sampling, noise_key

Winner = Callable[[Floats, float, int, float, int], int]

_COLDEST = 1e-6
"""Below this temperature float32 could overflow."""

_CLOSE = 2e-5
"""More than the rounding of a sum of float32 probabilities."""


@cache
def compiled() -> Winner | None:
    """The compiled pass, or None without numba. The first call takes seconds, once per machine."""
    try:
        from lightwork.kernels.cpu import entries, state

        entries.winner.prepare()
    except ModuleNotFoundError:
        return None

    def winner(logits_V: Floats, temperature: float, key: int, floor: float, top: int) -> int:
        scratch = np.empty(state.PICK_BLOCK)
        addresses = [array.__array_interface__["data"][0] for array in (logits_V, scratch)]
        return entries.winner(addresses[0], len(logits_V), temperature, key, floor, top, addresses[1])

    return winner


def choose(logits_NV: Floats, hows: Sequence[Sampling], positions: Sequence[int]) -> list[int]:
    """For each row the token at its position, or -1 where `sampling.pick` has to decide.

    logits_NV: float32. hows: how each row's token is chosen. Never raises for what the logits hold.
    """
    logits_NV = np.ascontiguousarray(logits_NV, np.float32)
    tops: list[int] = logits_NV.argmax(axis=1).tolist()
    best: list[float] = logits_NV[range(len(tops)), tops].tolist()
    winner = compiled()
    tokens = []
    for i, how in enumerate(hows):
        token = -1
        if how.plain and isfinite(best[i]):
            if how.temperature == 0.0:
                token = tops[i]
            elif winner is not None:
                token = _sample(winner, logits_NV[i], how, positions[i], tops[i])
        tokens.append(token)
    return tokens


def _sample(winner: Winner, logits_V: Floats, how: Sampling, position: int, top: int) -> int:
    if how.temperature < _COLDEST:
        return -1
    floor = -np.inf
    kept_V = logits_V
    if 0 < how.top_k < len(logits_V):
        least = np.partition(logits_V, -how.top_k)[-how.top_k]
        floor = float(least) / how.temperature
        kept_V = logits_V[logits_V >= least]
    if how.min_p > 0.0:
        floor = max(floor, float(float(logits_V[top]) / how.temperature + np.log(how.min_p)))
    key = noise_key(how.seed, position)
    if how.top_p == 1.0:
        return winner(logits_V, how.temperature, key, floor, top)
    with np.errstate(over="ignore"):
        odds = np.exp((kept_V - logits_V[top]) / np.float32(how.temperature))
    odds /= odds.sum(dtype=np.float64)
    while True:
        token = winner(logits_V, how.temperature, key, floor, top)
        inside = None if token < 0 else _in_nucleus(logits_V, kept_V, odds, token, how.top_p)
        if inside is None:
            return -1
        if inside:
            return token
        # What is not more probable than a token outside is outside, too: ask for the winner of the rest.
        floor = float(np.nextafter(float(logits_V[token]) / how.temperature, np.inf))


def _in_nucleus(logits_V: Floats, kept_V: Floats, odds: Floats, token: int, top_p: float) -> bool | None:
    """Whether what comes before the token in order of probability has less than top_p; None: too close."""
    own = logits_V[token]
    above = float(odds[kept_V > own].sum(dtype=np.float64))
    equal_before = np.count_nonzero(logits_V[:token] == own)
    if above > top_p + _CLOSE:
        return False
    if equal_before:
        above += equal_before * float(odds[kept_V == own][0])
    return True if above < top_p - _CLOSE else None
