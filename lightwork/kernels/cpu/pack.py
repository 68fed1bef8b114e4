"""Matrices arranged for the micro-kernel, and quantised on the way.

N outputs  K inputs  B blocks of 64 outputs. Outputs are padded to whole blocks and inputs to whole groups,
with zeros. Layout of a block, in the order the micro-kernel reads:

  F32 BF16 F16  [K][64]
  BF16_DOT      [K / 2][64][2]
  CODE8         per group: float16 scales [64], offsets [64] if affine, codes [group / 4][64][4]
  CODE4         the same with codes [group / 4][2][16][4]: outputs 32 i + j in the low half of a byte,
                32 i + 16 + j in the high half
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import RangeError
from lightwork.kernels.cpu.compiled import bfloat_bits, compiled, half_bits, half_value
from lightwork.kernels.cpu.formats import BF16_DOT, BLOCK, F32, MatrixFormat

Bytes = NDArray[np.uint8]


def pack(w_NK: NDArray[Any], into: Bytes, form: MatrixFormat, threads: int = 2) -> None:
    """Write a float32 matrix, or a bfloat16 one given as uint16, into `into`, quantising it if asked.

    Raises RangeError if the sizes do not match.
    """
    if into.nbytes != form.nbytes(*w_NK.shape):
        raise RangeError(
            f"{into.nbytes} bytes for a matrix of {w_NK.shape}", expected=str(form.nbytes(*w_NK.shape))
        )
    blocks = into.reshape(-1, form.block_bytes(w_NK.shape[1]))
    k = form.padded(w_NK.shape[1])
    table = np.array(form.table or [i - 8.0 for i in range(16)], np.float32)

    def part(first: int, last: int) -> None:
        if form.quantised:
            wide = w_NK[first * BLOCK : last * BLOCK]
            wide = widen(wide) if wide.dtype == np.uint16 else wide
            quantise_blocks(wide, blocks[first:last], form.group, form.four_bits, form.affine, table)
        elif form.code == F32:
            _lay_out(w_NK[first * BLOCK : last * BLOCK], blocks[first:last].view(w_NK.dtype), k, 1)
        else:
            pairs = 2 if form.code == BF16_DOT else 1
            _lay_out(w_NK[first * BLOCK : last * BLOCK], blocks[first:last].view(np.uint16), k, pairs)

    edges = [len(blocks) * i // (4 * threads) for i in range(4 * threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, edges[:-1], edges[1:]))


def widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 bits as float32: exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


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
def quantise_blocks(w: Any, blocks: Any, group: int, four_bits: bool, affine: bool, table: Any) -> None:
    """Quantise float32 w [N, K] into blocks [B, block bytes]."""
    n, k = w.shape
    groups = (k + group - 1) // group
    values, codes = np.zeros(group, np.float32), np.zeros(group, np.uint8)
    for block in range(blocks.shape[0]):
        for g in range(groups):
            for j in range(64):
                row, first = block * 64 + j, g * group
                for i in range(group):
                    there = row < n and first + i < k
                    values[i] = w[row, first + i] if there else np.float32(0)
                scale, offset = _quantise(values, codes, four_bits, affine, table)
                put_codes(blocks[block], g, j, scale, offset, codes, four_bits, affine)


@compiled
def put_codes(
    block: Any, g: int, j: int, scale: int, offset: int, codes: Any, four_bits: bool, affine: bool
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
