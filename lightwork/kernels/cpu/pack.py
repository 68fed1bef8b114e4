"""Matrices arranged for the micro-kernel, in codes or in full, and their nearest codes.

N outputs  K inputs  B blocks of 64 outputs. Outputs are padded to whole blocks and inputs to whole groups,
with zeros. Layout of a block, in the order the micro-kernel reads:

  F32 BF16 F16  [K][64]
  BF16_DOT      [K / 2][64][2]
  CODE8         per group: float16 scales [64], offsets [64] if affine, codes [group / 4][64][4]
  CODE4         the same with codes [group / 4][2][16][4]: outputs 32 i + j in the low half of a byte,
                32 i + 16 + j in the high half
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import RangeError
from lightwork.kernels.cpu.compiled import bfloat_bits, compiled, half_bits, half_value
from lightwork.kernels.cpu.formats import BF16_DOT, BLOCK, MatrixFormat

Bytes = NDArray[np.uint8]


class Coded(NamedTuple):
    """A matrix in codes: scale * (code - CENTRE) + offset, or scale * table[code].

    codes [N, K padded to whole groups]. scales, offsets: float16 bits [N, groups]; offsets of affine formats.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.uint16]
    offsets: NDArray[np.uint16]


def pack(matrix: NDArray[Any] | Coded, into: Bytes, form: MatrixFormat, threads: int = 2) -> None:
    """Write a matrix [N, K] into `into`: codes as they are, float32 (16-bit types: as uint16) as the format.

    Raises RangeError if the sizes do not match.
    """
    if form.quantised and not isinstance(matrix, Coded):
        matrix = quantise(matrix, form, threads)
    n, k = (matrix.codes if isinstance(matrix, Coded) else matrix).shape
    if into.nbytes != form.nbytes(n, k):
        raise RangeError(f"{into.nbytes} bytes for a matrix of {(n, k)}", expected=str(form.nbytes(n, k)))
    blocks = into.reshape(-1, form.block_bytes(k))

    def part(first: int, last: int) -> None:
        rows, out = slice(first * BLOCK, last * BLOCK), blocks[first:last]
        if isinstance(matrix, Coded):
            codes, scales, offsets = (array[rows] for array in matrix)
            _put_codes(codes, scales, offsets, out, form.four_bits, form.affine)
        else:
            pairs = 2 if form.code == BF16_DOT else 1
            _lay_out(matrix[rows], out.view(matrix.dtype), form.padded(k), pairs)

    _share(len(blocks), threads, part)


def quantise(w_NK: NDArray[np.float32], form: MatrixFormat, threads: int = 2) -> Coded:
    """The nearest codes."""
    n, k = len(w_NK), form.padded(w_NK.shape[1])
    scales = np.empty((n, k // form.group), np.uint16)
    coded = Coded(np.empty((n, k), np.uint8), scales, np.empty_like(scales))
    table = np.array(form.table or [i - 8.0 for i in range(16)], np.float32)

    def part(first: int, last: int) -> None:
        codes, scales, offsets = (array[first:last] for array in coded)
        _quantise_rows(
            w_NK[first:last], codes, scales, offsets, form.group, form.four_bits, form.affine, table
        )

    _share(n, threads, part)
    return coded


def _share(total: int, threads: int, part: Callable[[int, int], None]) -> None:
    """Call part(first, last) for pieces of range(total)."""
    edges = [total * i // (4 * threads) for i in range(4 * threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, edges[:-1], edges[1:]))


def narrow(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """float32 rounded to the nearest bfloat16, as bits."""
    out = np.empty(x.shape, np.uint16)
    _narrow(np.ascontiguousarray(x).reshape(-1), out.reshape(-1))
    return out


@compiled
def _narrow(x: Any, out: Any) -> None:
    for i in range(x.shape[0]):
        out[i] = bfloat_bits(x[i])


@compiled
def _lay_out(w: Any, blocks: Any, k_padded: int, pairs: int) -> None:
    """w [N, K] of any type into blocks [B, K / pairs, 64, pairs], rows of zeros where w ends."""
    n, k = w.shape
    for block in range(blocks.shape[0]):
        out = blocks[block]
        for j in range(64):
            row = block * 64 + j
            for i in range(k_padded):
                there = row < n and i < k
                out[(i // pairs * 64 + j) * pairs + i % pairs] = w[row, i] if there else 0


@compiled
def _quantise_rows(
    w: Any, codes: Any, scales: Any, offsets: Any, group: int, four_bits: bool, affine: bool, table: Any
) -> None:
    """Quantise float32 w [N, K]; inputs that fill the last group are zeros."""
    n, k = w.shape
    values = np.zeros(group, np.float32)
    for row in range(n):
        for g in range(scales.shape[1]):
            first = g * group
            for i in range(group):
                values[i] = w[row, first + i] if first + i < k else np.float32(0)
            into = codes[row, first : first + group]
            scales[row, g], offsets[row, g] = _quantise(values, into, four_bits, affine, table)


@compiled
def _put_codes(codes: Any, scales: Any, offsets: Any, blocks: Any, four_bits: bool, affine: bool) -> None:
    """Codes [N, k] into blocks [B, block bytes], rows of zeros where they end."""
    n, groups = scales.shape
    group = codes.shape[1] // groups
    nothing = np.zeros(group, np.uint8)
    for block in range(blocks.shape[0]):
        for g in range(groups):
            for j in range(64):
                row = block * 64 + j
                there = row < n
                scale = scales[row, g] if there else np.uint16(0)
                offset = offsets[row, g] if there else np.uint16(0)
                part = codes[row, g * group : (g + 1) * group] if there else nothing
                _put_group(blocks[block], g, j, scale, offset, part, four_bits, affine)


@compiled
def _put_group(
    block: Any, g: int, j: int, scale: Any, offset: Any, codes: Any, four_bits: bool, affine: bool
) -> None:
    """Write one output's group: its scale and offset (float16 bits) and codes, at their places in a block."""
    group = codes.shape[0]
    head = 256 if affine else 128
    at = g * (head + (group * 32 if four_bits else group * 64))
    block[at + 2 * j], block[at + 2 * j + 1] = scale & 255, scale >> 8
    if affine:
        block[at + 128 + 2 * j], block[at + 129 + 2 * j] = offset & 255, offset >> 8
    at += head
    for i in range(group):
        word, byte = i // 4, i % 4
        if four_bits:
            place = at + ((word * 2 + j // 32) * 16 + j % 16) * 4 + byte
            if j % 32 < 16:
                block[place] = (block[place] & 0xF0) | codes[i]
            else:
                block[place] = (block[place] & 0x0F) | (codes[i] << 4)
        else:
            block[at + (word * 64 + j) * 4 + byte] = codes[i]


@compiled
def _quantise(values: Any, codes: Any, four_bits: bool, affine: bool, table: Any) -> tuple[Any, Any]:
    """The nearest codes of a group, and float16 bits of the scale and offset they are nearest under."""
    low, high = values.min(), values.max()
    if affine:
        span = np.float32(15 if four_bits else 255)
        scale = _step_bits(high - low, span)
        middle = np.float32(8 if four_bits else 128)
        offset = half_bits(low + middle * half_value(scale))
        _encode_evenly(values, codes, half_value(scale), half_value(offset), middle, span)
        return scale, offset
    if not four_bits:
        scale = _step_bits(max(-low, high), np.float32(127))
        _encode_evenly(values, codes, half_value(scale), np.float32(0), np.float32(128), np.float32(255))
        return scale, 0
    return _best_scale(values, codes, table), 0


@compiled
def _step_bits(reach: Any, steps: Any) -> Any:
    """reach / steps as float16 bits; the next larger one where so many steps would fall short by half of one.

    Only scales below 6e-5 are rounded so coarsely.
    """
    bits = half_bits(reach / steps)
    if half_value(bits) * (steps + np.float32(0.5)) < reach:
        bits += np.uint16(1)
    return bits


@compiled
def _encode_evenly(values: Any, codes: Any, scale: Any, offset: Any, middle: Any, top: Any) -> None:
    inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
    for i in range(values.shape[0]):
        code = np.rint((values[i] - offset) * inverse) + middle
        codes[i] = np.uint8(min(max(code, np.float32(0)), top))


@compiled
def _best_scale(values: Any, codes: Any, table: Any) -> Any:
    """Of some scales around the one that maps the largest value to the table's end, the least squared error.

    Either sign: a table that reaches further below zero than above holds the largest value there.
    """
    low, high = values.min(), values.max()
    extreme = high if high > -low else low
    best, best_error = np.uint16(0), np.float32(np.inf)
    if extreme == 0:
        _encode_by_table(values, codes, np.float32(0), table)
        return best
    for end in (0, 15):
        for shrink in range(8):
            bits = half_bits(extreme / table[end] * (np.float32(1) - np.float32(0.04) * np.float32(shrink)))
            error = _encode_by_table(values, codes, half_value(bits), table)
            if error < best_error:
                best, best_error = bits, error
    _encode_by_table(values, codes, half_value(best), table)
    return best


@compiled
def _encode_by_table(values: Any, codes: Any, scale: Any, table: Any) -> Any:
    """The nearest entry of the ascending table for each value; returns the squared error."""
    error = np.float32(0)
    inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
    for i in range(values.shape[0]):
        x = values[i] * inverse
        code = 0
        for c in range(15):
            code += x > (table[c] + table[c + 1]) * np.float32(0.5)
        codes[i] = code
        miss = values[i] - scale * table[code]
        error += miss * miss
    return error
