"""Rows times a matrix by all threads: blocks of 64 outputs are shared out, each finished by what follows it.

A thread streams a block's weights once from memory for up to ROW_TILE rows; with many rows it goes through
the inputs in panels, so that weights and rows stay in its second-level cache.
"""

from __future__ import annotations

from typing import Any

from lightwork.kernels.cpu.compiled import compiled
from lightwork.kernels.cpu.formats import (
    BF16,
    BF16_DOT,
    CODE4,
    CODE4_DOT,
    CODE8,
    CODE8_DOT,
    F16,
    F32,
)
from lightwork.kernels.cpu.rowwise import activate, group_sums, to_bfloat16, to_bytes
from lightwork.kernels.cpu.state import floats, int32s, int_at, ints, shorts, signed_bytes
from lightwork.kernels.cpu.team import take
from lightwork.kernels.cpu.tile import multiply

ROW_TILE = 192
TILE_BYTES = ROW_TILE * 64 * 4
PANEL = 512
PLAIN, ADDED, ACTIVATED, GATED = range(4)
"""What becomes of a product: stored, added to what is there, activated, or activated and multiplied with the
product of the following matrix."""

OFFSET, BLOCKS, INPUTS, BLOCK_BYTES = range(4)
PIECES_PER_THREAD = 4


@compiled
def row_of(t: Any, buffer: int, r: int, size: int) -> Any:
    """The first `size` numbers of a row of mixed, wide or gathered."""
    return floats(buffer + 4 * r * t.width, size)


@compiled
def encode(t: Any, buffer: int, r: int, size: int) -> None:
    """Prepare a row of a buffer for a product with a matrix of `size` inputs."""
    row = row_of(t, buffer, r, size)
    if t.format == BF16_DOT:
        to_bfloat16(row, shorts(t.halves + 2 * r * t.width, size + size % 2))
    elif t.format == CODE8_DOT or t.format == CODE4_DOT:
        groups = (size + t.group - 1) // t.group
        codes = signed_bytes(t.codes + r * t.width, groups * t.group)
        at = 4 * r * t.groups
        to_bytes(row, t.group, codes, floats(t.scales + at, groups), int32s(t.sums + at, groups))
    elif t.format == CODE8 or t.format == CODE4:
        groups = (size + t.group - 1) // t.group
        row_of(t, buffer, r, groups * t.group)[size:] = 0
        if t.affine:
            group_sums(row, t.group, floats(t.float_sums + 4 * r * t.groups, groups))


@compiled
def encode_phase(t: Any, thread: int, phase: int, buffer: int, rows: int, size: int) -> None:
    """Encode all rows of a buffer, if the format asks for it."""
    if t.format == F32 or t.format == BF16 or t.format == F16:
        return
    while True:
        r, last = take(t, phase, thread, rows, 1)
        if r == last:
            return
        encode(t, buffer, r, size)


@compiled
def _product(t: Any, w: int, buffer: int, first: int, rows: int, k: int, count: int, out: int) -> None:
    """out [rows, 64] += inputs k .. k + count of the rows from `first` times w, which begins at input k."""
    scales = sums = group_stride = 0
    x, stride = buffer + 4 * k, 4 * t.width
    if t.format == BF16_DOT:
        x, stride = t.halves + 2 * k, 2 * t.width
    elif t.format == CODE8_DOT or t.format == CODE4_DOT:
        x, stride, group_stride = t.codes + k, t.width, 4 * t.groups
        at = first * group_stride + 4 * (k // t.group)
        scales, sums = t.scales + at, t.sums + at
    elif t.affine:
        group_stride = 4 * t.groups
        sums = t.float_sums + first * group_stride + 4 * (k // t.group)
    multiply(
        t.kernel,
        w,
        t.table,
        x + first * stride,
        stride,
        scales,
        sums,
        group_stride,
        out,
        256,
        rows,
        count,
        t.group,
    )


@compiled
def _block(t: Any, matrix: int, block: int, buffer: int, first: int, rows: int, out: int) -> None:
    """out [rows, 64] = rows times one block of a matrix, a panel of inputs after the other."""
    place = ints(t.matrices + 8 * 4 * matrix, 4)
    k = place[INPUTS]
    w = t.weights + place[OFFSET] + block * place[BLOCK_BYTES]
    panel = k if rows <= 6 else min(k, PANEL)
    floats(out, rows * 64)[:] = 0
    at = 0
    while at < k:
        _product(t, w + place[BLOCK_BYTES] * at // k, buffer, first, rows, at, min(panel, k - at), out)
        at += panel


@compiled
def _finish(t: Any, then: int, tile: Any, second: Any, bias: int, second_bias: int, out: Any) -> None:
    """What becomes of one row of a block. tile, second, out: equally wide; biases: addresses or 0."""
    if bias:
        near = floats(bias, tile.shape[0])
        for j in range(tile.shape[0]):
            tile[j] += near[j]
    if then == PLAIN:
        for j in range(tile.shape[0]):
            out[j] = tile[j]
    elif then == ADDED:
        for j in range(tile.shape[0]):
            out[j] += tile[j]
    elif then == ACTIVATED:
        activate(t.activation, tile, out)
    else:
        activate(t.activation, tile, out)  # not in place: the loop is vectorised only between two arrays
        if second_bias:
            far = floats(second_bias, tile.shape[0])
            for j in range(tile.shape[0]):
                second[j] += far[j]
        for j in range(tile.shape[0]):
            out[j] *= second[j]


@compiled
def product_phase(
    t: Any,
    thread: int,
    phase: int,
    then: int,
    matrix: int,
    experts: int,
    starts: int,
    buffer: int,
    bias: int,
    outputs: int,
    out: int,
    out_width: int,
) -> None:
    """out[r] = then(row r of a buffer times a matrix), for rows starts[e] .. starts[e + 1] of each expert e.

    matrix: of the first expert; each has one, or two if GATED. bias: offset in vectors, or -1.
    out: float32 rows of out_width, of which `outputs` numbers are written.
    """
    each = 2 if then == GATED else 1
    tiles = t.tiles + thread * 2 * TILE_BYTES
    blocks = int_at(t.matrices, 4 * matrix + BLOCKS)
    total = experts * blocks
    piece = max(1, total // (t.threads * PIECES_PER_THREAD))
    while True:
        task, last = take(t, phase, thread, total, piece)
        if task == last:
            return
        for one in range(task, last):
            expert, block = one // blocks, one % blocks
            left = block * 64
            width = min(64, outputs - left)
            near = t.vectors + 4 * (bias + left) if bias >= 0 else 0
            far = near + 4 * outputs if bias >= 0 else 0
            mine = matrix + each * expert
            end = int_at(starts, expert + 1)
            for first in range(int_at(starts, expert), end, ROW_TILE):
                rows = min(ROW_TILE, end - first)
                _block(t, mine, block, buffer, first, rows, tiles)
                if then == GATED:
                    _block(t, mine + 1, block, buffer, first, rows, tiles + TILE_BYTES)
                for i in range(rows):
                    tile = floats(tiles + 256 * i, width)
                    second = floats(tiles + TILE_BYTES + 256 * i, width)
                    to = floats(out + 4 * ((first + i) * out_width + left), width)
                    _finish(t, then, tile, second, near, far, to)
