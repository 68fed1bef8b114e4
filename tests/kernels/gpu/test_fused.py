"""Fused kernels against the functions of the reference forward that they replace."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightwork.kernels.gpu.fused import gated, rms_norm, rotate_and_store
from lightwork.models.spec import Rope
from lightwork.models.transformer import _rms, _rotate, rotary

TYPES = {torch.float32: 2e-6, torch.float16: 2e-3}
"""Tolerances: a sum in another order, and for float16 roundings that then fall to the other side. The
interpreter cuts bfloat16 off where a GPU rounds it; `tests/gpu` has that type."""


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("hidden", [64, 100])
def test_rms_norm_with_and_without_a_residual(dtype: torch.dtype, hidden: int) -> None:
    torch.manual_seed(0)
    x, add = torch.randn(2, 5, hidden).to(dtype)
    weight = torch.randn(hidden).to(dtype)
    close = {"atol": TYPES[dtype], "rtol": TYPES[dtype]}
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), _rms(x, weight, 1e-5), **close)
    total = x + add
    got = rms_norm(x, weight, 1e-5, add_Rd=add)
    assert torch.equal(x, total)
    torch.testing.assert_close(got, _rms(total, weight, 1e-5), **close)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("normed", [False, True])
def test_rotation_and_the_write_of_keys_and_values(dtype: torch.dtype, normed: bool) -> None:
    torch.manual_seed(1)
    rows, heads, kv_heads, size = 4, 5, 2, 12
    qkv = torch.randn(rows, (heads + 2 * kv_heads) * size).to(dtype)
    norms = torch.randn(2, size).to(dtype)
    cos, sin = rotary(Rope(theta=1e4), size, torch.tensor([0, 3, 700, 41]), dtype)
    slots = torch.tensor([9, 2, -1, 30], dtype=torch.int32)
    pools = [torch.full((32, kv_heads, size), 7.0, dtype=dtype) for _ in range(4)]

    split = qkv.view(rows, -1, size)
    q, k, v = split.split((heads, kv_heads, kv_heads), 1)
    if normed:
        q, k = _rms(q, norms[0], 1e-6), _rms(k, norms[1], 1e-6)
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    written = [0, 1, 3]
    pools[0][slots[written].long()] = k[written]
    pools[1][slots[written].long()] = v[written].clone()

    weights = {"q_norm_D": norms[0], "k_norm_D": norms[1]} if normed else {}
    rotate_and_store(qkv, cos, sin, slots, pools[2], pools[3], eps=1e-6, **weights)
    close = {"atol": TYPES[dtype], "rtol": TYPES[dtype]}
    torch.testing.assert_close(qkv.view(rows, -1, size)[:, :heads], q, **close)
    torch.testing.assert_close(pools[2], pools[0], **close)
    assert torch.equal(pools[3], pools[1])


@pytest.mark.parametrize("dtype", TYPES)
def test_the_gated_activation(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    up = 4 * torch.randn(3, 2 * 1100).to(dtype)
    gate, value = up.chunk(2, -1)
    torch.testing.assert_close(gated(up), F.silu(gate) * value, atol=TYPES[dtype], rtol=TYPES[dtype])
