"""The sampled token of a row in one compiled pass: equal to `sampling`, without a logarithm for every token.

Standard Gumbel noise -log(-log(u)) is at most -log(1 - u), and the bits of a double, read as one number,
are a line that runs below its logarithm. So a sum and a product bound what each token can reach, eight
tokens at a time, and only the few that can still win pay for their noise. Where the first two come out
closer than the rounding of a logarithm there is no answer here, and numpy decides.

Importing this needs numba.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar, cast

import numpy as np

numba: Any = import_module("numba")
F = TypeVar("F", bound=Callable[..., Any])

_BLOCK = 256
_GAMMA, _MIX1, _MIX2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_S11, _S27, _S30, _S31 = (np.uint64(s) for s in (11, 27, 30, 31))
_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
_PER_BIT = math.log(2.0) * 2.0**-52
_BIAS = math.log(2.0) * (1023 + 53)

_row = numba.types.Array(numba.float32, 1, "C", readonly=True)
_signature = numba.int64(_row, numba.float64, numba.uint64, numba.float64, numba.int64)


def _jit(fn: F, *signature: Any) -> F:
    return cast(F, numba.njit(*signature, nogil=True, cache=True, error_model="numpy")(fn))


def _hash_of(key: Any, token: Any) -> Any:
    x = key + np.uint64(token) * _GAMMA
    x = (x ^ (x >> _S30)) * _MIX1
    x = (x ^ (x >> _S27)) * _MIX2
    return x ^ (x >> _S31)


def _gumbel_of(hashed: Any) -> Any:
    return -math.log(-math.log((np.float64(hashed >> _S11) + 0.5) * 2.0**-53))


_hash, _gumbel = _jit(_hash_of), _jit(_gumbel_of)


def _winner(logits_V: Any, temperature: float, key: Any, floor: float, top: int) -> int:
    scale = 1.0 / temperature
    z_top = np.float64(logits_V[top]) / temperature
    slack = 1e-9 * (abs(z_top) + 100.0)
    limit = z_top + _gumbel(_hash(key, top)) - slack
    best, second, token = -np.inf, -np.inf, -1
    rare = np.empty(_BLOCK, np.float64)
    bits = rare.view(np.int64)
    for at in range(0, logits_V.shape[0], _BLOCK):
        part = logits_V[at : at + _BLOCK]
        for j in range(part.shape[0]):
            rare[j] = np.float64((_hash(key, at + j) ^ _ONES) >> _S11)
        hits = 0
        for j in range(part.shape[0]):
            hits += np.float64(part[j]) * scale + (_BIAS - np.float64(bits[j]) * _PER_BIT) >= limit
        if hits == 0:
            continue
        for j in range(part.shape[0]):
            z = np.float64(part[j]) / temperature
            if z < floor or z + (_BIAS - np.float64(bits[j]) * _PER_BIT) < limit:
                continue
            total = z + _gumbel(_hash(key, at + j))
            if total > best:
                best, second, token = total, best, at + j
                limit = max(limit, best - slack)
            elif total > second:
                second = total
    clear = best - second > 1e-11 * (1.0 + abs(best))
    return token if clear and math.isfinite(best) else -1


winner = _jit(_winner, _signature)
"""(logits_V, temperature, key, floor, top) -> token, or -1: numpy must decide.

logits_V: float32, no NaN. key: `sampling.noise_key`, uint64. floor: tokens whose logit / temperature is lower
are left out. top: a token of the highest logit.
"""
