"""Tokens chosen on the device are those that `decode.sampling` chooses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightwork.decode import sampling
from lightwork.decode.sampling import Sampling
from lightwork.kernels.gpu import pick as device
from lightwork.kernels.gpu._triton import constexpr, kernel, tensor, tl
from lightwork.kernels.gpu.pick import NOT_FINITE, pick

SEEDS = (0, 1, 7919, (1 << 63) + 12345, (1 << 64) - 1)
VOCAB = 2500


def on_device(logits: torch.Tensor, seeds: list[int], positions: list[int], heat: list[float]) -> list[int]:
    wrapped = torch.from_numpy(np.array(seeds, np.uint64).view(np.int64))
    chosen = pick(logits, wrapped, torch.tensor(positions, dtype=torch.int32), torch.tensor(heat).double())
    return chosen.tolist()


@kernel
def write_noise(
    seed_at: tensor, position_at: tensor, bits_at: tensor, noise_at: tensor, N: constexpr
) -> None:
    ids = tl.arange(0, N)
    seed = tl.load(seed_at).to(tl.uint64, bitcast=True)
    bits = device.noise_bits(seed, tl.load(position_at).to(tl.uint64), ids.to(tl.uint64))
    tl.store(bits_at + ids, bits.to(tl.int64, bitcast=True))
    tl.store(noise_at + ids, device.gumbel(bits))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_noise_is_the_same_to_the_bit(seed: int) -> None:
    position = 4097
    bits, noise = torch.zeros(512, dtype=torch.int64), torch.zeros(512, dtype=torch.float64)
    held = torch.from_numpy(np.array([seed], np.uint64).view(np.int64))
    write_noise[(1,)](held, torch.tensor([position], dtype=torch.int32), bits, noise, N=512)
    ids = np.arange(512)
    uniform = ((bits.numpy().view(np.uint64) >> np.uint64(11)).astype(float) + 0.5) * 2.0**-53
    assert np.array_equal(-np.log(-np.log(uniform)), sampling.gumbel(seed, position, ids))
    assert np.array_equal(noise.numpy(), sampling.gumbel(seed, position, ids))


def test_every_choice_is_that_of_the_reference() -> None:
    rng = np.random.default_rng(0)
    logits = (3 * rng.standard_normal((12, VOCAB))).astype(np.float32)
    seeds = [SEEDS[i % len(SEEDS)] for i in range(12)]
    positions = rng.integers(0, 100_000, 12).tolist()
    heat = [0.0, 1.0, 0.3, 2.0] * 3
    right = [
        sampling.pick(logits[i], Sampling(temperature=heat[i], seed=seeds[i]), positions[i], (), ()).token
        for i in range(12)
    ]
    assert on_device(torch.from_numpy(logits), seeds, positions, heat) == right
    assert len(set(right)) > 6


def test_ties_go_to_the_lowest_token() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[0, [2100, 1030, 1500]] = 1.0
    assert on_device(logits, [0, 0], [0, 0], [0.0, 0.0]) == [1030, 0]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("heat", [0.0, 1.0])
def test_what_is_not_finite_is_said(wrong: float, heat: float) -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))
    logits[0, 1200] = wrong
    logits[1] = -float("inf")
    logits[2, 5:] = -float("inf")
    chosen = on_device(logits, [1, 1, 1], [3, 3, 3], [heat] * 3)
    assert chosen[:2] == [NOT_FINITE, NOT_FINITE]
    assert 0 <= chosen[2] < 5
