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
FEW_ROWS = 16
"""Up to so many rows go over all inputs of a block at once: they and the block fit in a cache."""
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
def _product(
    t: Any, w: int, buffer: int, first: int, rows: int, k: int, count: int, out: int, out_stride: int
) -> None:
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
        out_stride,
        rows,
        count,
        t.group,
    )


@compiled
def _block(
    t: Any, matrix: int, block: int, buffer: int, first: int, rows: int, out: int, out_stride: int
) -> None:
    """out [rows, 64] += rows times one block of a matrix, a panel of inputs after the other."""
    place = ints(t.matrices + 8 * 4 * matrix, 4)
    k = place[INPUTS]
    w = t.weights + place[OFFSET] + block * place[BLOCK_BYTES]
    panel = k if rows <= FEW_ROWS else min(k, PANEL)
    at = 0
    while at < k:
        part = w + place[BLOCK_BYTES] * at // k
        _product(t, part, buffer, first, rows, at, min(panel, k - at), out, out_stride)
        at += panel


@compiled
def _clear(out: int, rows: int, stride: int) -> None:
    for i in range(rows):
        floats(out + i * stride, 64)[:] = 0


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
    blocks = int_at(t.matrices, 4 * matrix + BLOCKS)
    total = experts * blocks
    piece = max(1, total // (t.threads * PIECES_PER_THREAD))
    while True:
        task, last = take(t, phase, thread, total, piece)
        if task == last:
            return
        for one in range(task, last):
            expert, block = one // blocks, one % blocks
            end = int_at(starts, expert + 1)
            for first in range(int_at(starts, expert), end, ROW_TILE):
                rows = min(ROW_TILE, end - first)
                to, width = out + 4 * (first * out_width + block * 64), min(64, outputs - block * 64)
                near = t.vectors + 4 * (bias + block * 64) if bias >= 0 else 0
                far = near + 4 * outputs if bias >= 0 else 0
                mine = matrix + each * expert
                if width == 64 and bias < 0 and then <= ADDED:
                    if then == PLAIN:
                        _clear(to, rows, 4 * out_width)
                    _block(t, mine, block, buffer, first, rows, to, 4 * out_width)
                else:
                    _through_tiles(
                        t, thread, then, mine, block, buffer, first, rows, near, far, to, width, out_width
                    )


@compiled
def _through_tiles(
    t: Any,
    thread: int,
    then: int,
    matrix: int,
    block: int,
    buffer: int,
    first: int,
    rows: int,
    near: int,
    far: int,
    out: int,
    width: int,
    out_width: int,
) -> None:
    """A block whose result is not simply stored or added: computed apart, then finished row by row."""
    tile = t.tiles + thread * 2 * TILE_BYTES
    second = tile + TILE_BYTES
    _clear(tile, rows, 256)
    _block(t, matrix, block, buffer, first, rows, tile, 256)
    if then == GATED:
        _clear(second, rows, 256)
        _block(t, matrix + 1, block, buffer, first, rows, second, 256)
    for i in range(rows):
        at = 256 * i
        to = floats(out + 4 * i * out_width, width)
        _finish(t, then, floats(tile + at, width), floats(second + at, width), near, far, to)
