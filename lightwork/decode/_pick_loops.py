"""The sampled token of a long row in one compiled pass: equal to `sampling`, without a logarithm per token.

Standard Gumbel noise -log(-log(u)) is at most -log(1 - u), and the bits of a double, read as a line through
the powers of two, are at most its logarithm. So a sum and a product bound what each token can reach, eight
at a time, and only the few that can still win pay for their noise. Where two come out closer than the last
digits of two logarithms, there is no answer here and numpy decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from lightwork.decode.sampling import Floats

Winner = Callable[[Floats, float, Any, float, int], int]
"""(logits_V, temperature, key, floor, top) -> token, or -1: numpy must decide.

logits_V: float32, contiguous, finite or -inf. key: uint64, of `sampling.noise_key`. floor: tokens with a
lower logit / temperature are left out. top: a token of the highest logit.
"""

_BLOCK = 256
_GAMMA, _MIX1, _MIX2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_S11, _S27, _S30, _S31 = (np.uint64(s) for s in (11, 27, 30, 31))
_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
_LN2 = math.log(2.0)
_PER_BIT = _LN2 * 2.0**-52
_BIAS = _LN2 * (1023 + 53)


def _hash(key: Any, token: Any) -> Any:
    x = key + np.uint64(token) * _GAMMA
    x = (x ^ (x >> _S30)) * _MIX1
    x = (x ^ (x >> _S27)) * _MIX2
    return x ^ (x >> _S31)


def _gumbel(hashed: Any) -> Any:
    return -math.log(-math.log((np.float64(hashed >> _S11) + 0.5) * 2.0**-53))


@cache
def compiled() -> Winner | None:
    """The pass, compiled for this processor; None without numba."""
    try:
        import numba
    except ImportError:
        return None
    jit = numba.njit(nogil=True, cache=True, error_model="numpy")
    hashed, gumbel = numba.njit(inline="always")(_hash), numba.njit(_gumbel)

    def winner(logits_V: Any, temperature: Any, key: Any, floor: Any, top: Any) -> Any:
        scale = 1.0 / temperature
        z_top = np.float64(logits_V[top]) / temperature
        slack = 1e-9 * (abs(z_top) + 100.0)
        limit = z_top + gumbel(hashed(key, top)) - slack
        best, second, token = -np.inf, -np.inf, -1
        rare = np.empty(_BLOCK, np.float64)
        bits = rare.view(np.int64)
        for at in range(0, logits_V.shape[0], _BLOCK):
            part = logits_V[at : at + _BLOCK]
            for j in range(part.shape[0]):
                rare[j] = np.float64((hashed(key, at + j) ^ _ONES) >> _S11)
            hits = 0
            for j in range(part.shape[0]):
                hits += np.float64(part[j]) * scale + (_BIAS - np.float64(bits[j]) * _PER_BIT) >= limit
            if hits == 0:
                continue
            for j in range(part.shape[0]):
                z = np.float64(part[j]) / temperature
                if z < floor or z + (_BIAS - np.float64(bits[j]) * _PER_BIT) < limit:
                    continue
                total = z + gumbel(hashed(key, at + j))
                if total > best:
                    best, second, token = total, best, at + j
                    limit = max(limit, best - slack)
                elif total > second:
                    second = total
        clear = best - second > 1e-11 * (1.0 + abs(best))
        return token if clear and math.isfinite(best) else -1

    return jit(winner)
