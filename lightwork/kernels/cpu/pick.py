"""The sampled token of a row in one compiled pass: equal to `sampling`, without a logarithm for every token.

Standard Gumbel noise -log(-log(u)) is at most -log(1 - u), and the bits of a double, read as one number,
are a line that runs below its logarithm. So a sum and a product bound what each token can reach, eight
tokens at a time, and only the few that can still win pay for their noise. Where the first two come out
closer than the rounding of a logarithm there is no answer here, and numpy decides.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lightwork.kernels.cpu.compiled import compiled
from lightwork.kernels.cpu.primitives import doubles, floats, ints
from lightwork.kernels.cpu.state import PICK_BLOCK

_GAMMA, _MIX1, _MIX2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_S11, _S27, _S30, _S31 = (np.uint64(s) for s in (11, 27, 30, 31))
_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
_PER_BIT = math.log(2.0) * 2.0**-52
_BIAS = math.log(2.0) * (1023 + 53)


@compiled
def _hash(key: Any, token: Any) -> Any:
    x = key + np.uint64(token) * _GAMMA
    x = (x ^ (x >> _S30)) * _MIX1
    x = (x ^ (x >> _S27)) * _MIX2
    return x ^ (x >> _S31)


@compiled
def _gumbel(hashed: Any) -> Any:
    return -math.log(-math.log((np.float64(hashed >> _S11) + 0.5) * 2.0**-53))


@compiled
def winner(
    logits: int, vocab: int, temperature: float, noise: int, floor: float, top: int, scratch: int
) -> int:
    """The token, or -1: numpy must decide.

    logits: address of float32 [V], no NaN. noise: the bits of `sampling.noise_key`. floor: tokens whose
    logit / temperature is lower are left out. top: a token of the highest logit. scratch: address of float64
    [PICK_BLOCK].
    """
    logits_V, key = floats(logits, vocab), np.uint64(noise)
    scale = 1.0 / temperature
    z_top = np.float64(logits_V[top]) / temperature
    slack = 1e-9 * (abs(z_top) + 100.0)
    limit = z_top + _gumbel(_hash(key, top)) - slack
    best, second, token = -np.inf, -np.inf, -1
    rare, bits = doubles(scratch, PICK_BLOCK), ints(scratch, PICK_BLOCK)
    for at in range(0, vocab, PICK_BLOCK):
        part = logits_V[at : at + PICK_BLOCK]
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
