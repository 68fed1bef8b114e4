"""The choice of tokens on the device: argmax(logits / temperature + gumbel(seed, position)).

The noise is that of `decode.sampling`, in the same 64-bit integer and floating-point arithmetic, so the
tokens are those it would choose. Filters, penalties and log-probabilities are left to it.

N scored rows  V vocabulary
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightwork.kernels.gpu._triton import at_least, constexpr, kernel, tensor, tl

BLOCK = 1024
"""Tokens of one program."""

NOT_FINITE = -1
"""What `pick` gives for a row without a finite best score."""


def pick(logits_NV: Tensor, seeds_N: Tensor, positions_N: Tensor, temperatures_N: Tensor) -> Tensor:
    """Token ids, int32 [N]; NOT_FINITE for rows that are not a number, infinite, or nowhere possible.

    seeds: int64, modulo 2^64. positions: int32, tokens before the one chosen. temperatures: float64, 0 takes
    the most probable token. Ties go to the lowest id.
    """
    num, vocab = logits_NV.shape
    blocks = -(-vocab // BLOCK)
    scores_NB = torch.empty((num, blocks), dtype=torch.float64, device=logits_NV.device)
    ids_NB = torch.empty((num, blocks), dtype=torch.int32, device=logits_NV.device)
    out_N = torch.empty(num, dtype=torch.int32, device=logits_NV.device)
    _best_of_block[(num, blocks)](
        logits_NV,
        seeds_N,
        positions_N,
        temperatures_N,
        scores_NB,
        ids_NB,
        vocab,
        logits_NV.stride(0),
        BLOCK=BLOCK,
        enable_fp_fusion=False,
    )
    _best[(num,)](scores_NB, ids_NB, out_N, blocks, BLOCKS=at_least(blocks, 2), enable_fp_fusion=False)
    return out_N


@kernel
def mix(x: tensor) -> tensor:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, 2014), on uint64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@kernel
def noise_bits(seed: tensor, position: tensor, ids: tensor) -> tensor:
    """uint64 hashes of token ids at one position."""
    key = mix(mix(seed * 0x9E3779B97F4A7C15 + 1) + position * 0x9E3779B97F4A7C15)
    return mix(key + ids * 0x9E3779B97F4A7C15)


@kernel
def gumbel(bits: tensor) -> tensor:
    uniform = ((bits >> 11).to(tl.float64) + 0.5) * 1.1102230246251565e-16
    return -tl.log(-tl.log(uniform))


@kernel
def _best_of_block(
    logits: tensor,
    seeds: tensor,
    positions: tensor,
    temperatures: tensor,
    scores: tensor,
    ids: tensor,
    vocab: tensor,
    stride: tensor,
    BLOCK: constexpr,
) -> None:
    n = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(logits + n * stride + token, mask=token < vocab, other=float("-inf")).to(tl.float64)
    broken = tl.max(((z != z) | (z == float("inf"))).to(tl.int32), 0)
    temperature = tl.load(temperatures + n)
    if temperature > 0.0:
        seed = tl.load(seeds + n).to(tl.uint64, bitcast=True)
        position = tl.load(positions + n).to(tl.uint64)
        z = z / temperature + gumbel(noise_bits(seed, position, token.to(tl.uint64)))
    high = tl.max(z, 0)
    best = tl.min(tl.where(z == high, token, vocab), 0)
    best = tl.where((high == float("-inf")) | (broken > 0), -1, best)
    at = n * tl.num_programs(1) + tl.program_id(1)
    tl.store(scores + at, tl.where(broken > 0, float("inf"), high))
    tl.store(ids + at, best)


@kernel
def _best(scores: tensor, ids: tensor, out: tensor, blocks: tensor, BLOCKS: constexpr) -> None:
    n = tl.program_id(0).to(tl.int64)
    b = tl.arange(0, BLOCKS)
    z = tl.load(scores + n * blocks + b, mask=b < blocks, other=float("-inf"))
    at = tl.min(tl.where(z == tl.max(z, 0), b, BLOCKS), 0)
    tl.store(out + n, tl.load(ids + n * blocks + at))
