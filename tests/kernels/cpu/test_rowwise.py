"""Rows split into bfloat16, and widened again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from packing import bfloat16

from lightwork.kernels.cpu.compiled import compiled
from lightwork.kernels.cpu.formats import PARTS
from lightwork.kernels.cpu.rowwise import to_bfloat16_parts, widen


@compiled
def split(x: Any, out: Any) -> None:
    to_bfloat16_parts(x, out)


@compiled
def widened(bits: Any, half: int, out: Any) -> None:
    widen(bits, half, out)


@pytest.mark.parametrize("size", [1, 15, 16, 40])
def test_three_bfloat16_are_a_float32(size: int) -> None:
    rng = np.random.default_rng(size)
    for _ in range(200):
        x = (rng.standard_normal(size) * 10.0 ** rng.integers(-25, 30, size)).astype(np.float32)
        x[0] = rng.choice(np.array([0.0, -1.0, 1 + 2.0**-23, 2 - 2.0**-23], np.float32))
        parts = np.full((PARTS, 48), 0xA5A5, np.uint16)
        split(x, parts.reshape(-1))
        np.testing.assert_array_equal(bfloat16(parts).sum(0)[:size], x)
        assert not parts[:, size : size + size % 2].any()
        assert (parts[:, size + size % 2 :] == 0xA5A5).all()


@pytest.mark.parametrize("size", [7, 64, 100])
def test_widening_is_exact(size: int) -> None:
    bits = np.random.default_rng(size).integers(0, 0x7800, size).astype(np.uint16)
    out = np.empty(size, np.float32)
    widened(bits, 0, out)
    np.testing.assert_array_equal(out, bfloat16(bits))
    widened(bits, 1, out)
    np.testing.assert_array_equal(out, bits.view(np.float16).astype(np.float32))
