"""Rows times a matrix by all threads: blocks of 64 outputs are shared out, each finished by what follows it.

A thread streams a block's weights once for up to ROW_TILE rows. With many rows it takes a few blocks
together and goes through the inputs in panels, so that a panel of rows, which all blocks use, stays in its
second-level cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightwork.kernels.cpu.compiled import compiled
from lightwork.kernels.cpu.deltas import add_deltas
from lightwork.kernels.cpu.formats import (
    BF16,
    BF16_DOT,
    BLOCK,
    CODE4,
    CODE4_DOT,
    CODE8,
    CODE8_DOT,
    F16,
    F32,
    PARTS,
)
from lightwork.kernels.cpu.primitives import floats, int32s, int_at, ints, multiply, shorts, signed_bytes
from lightwork.kernels.cpu.rowwise import (
    activate,
    group_sums,
    to_bfloat16,
    to_bfloat16_parts,
    to_bytes,
    widen,
)
from lightwork.kernels.cpu.sharing import take
from lightwork.kernels.cpu.state import (
    BLOCK_BYTES,
    BLOCKS,
    BLOCKS_TOGETHER,
    DELTAS_PER_PRODUCT,
    INPUTS,
    MATRIX_COLUMNS,
    OFFSET,
    ROW_TILE,
    TILE_BYTES,
    TILE_WIDTH,
    WIDENED_PANEL,
)

MANY_ROWS = 64
"""From so many rows on, weights of 16 bits are widened apart: with fewer, memory would idle meanwhile."""
PANEL = 512
FEW_ROWS = 32
"""Up to so many rows go over all inputs of a block at once: they and the block fit in a cache."""
PLAIN, ADDED, ACTIVATED, GATED = range(4)
"""What becomes of a product: stored, added to what is there, activated, or activated and multiplied with the
product of the following matrix."""

ITEMS_PER_THREAD, PIECES_PER_THREAD = 4, 32
"""Blocks are taken together while so many items are left for each thread; items in so many pieces."""


@compiled
def row_of(t: Any, buffer: int, r: int, size: int) -> Any:
    """The first `size` numbers of a row of mixed, wide or gathered."""
    return floats(buffer + 4 * r * t.width, size)


@compiled
def encode(t: Any, buffer: int, r: int, size: int) -> None:
    """Prepare a row of a buffer for a product with a matrix of `size` inputs."""
    row = row_of(t, buffer, r, size)
    if t.format == BF16_DOT:
        halves = t.halves + 2 * r * t.parts * t.width
        if t.parts == 1:
            to_bfloat16(row, shorts(halves, size + size % 2))
        else:
            to_bfloat16_parts(row, shorts(halves, PARTS * t.width))
    elif t.format == CODE8_DOT or t.format == CODE4_DOT:
        groups = (size + t.group - 1) // t.group
        codes = signed_bytes(t.codes + r * t.width, groups * t.group)
        at = 4 * r * t.groups
        to_bytes(row, t.group, codes, floats(t.scales + at, groups), int32s(t.sums + at, groups))
    elif t.format == CODE8 or t.format == CODE4:
        groups = (size + t.group - 1) // t.group
        rest = row_of(t, buffer, r, groups * t.group)
        for k in range(size, groups * t.group):
            rest[k] = 0
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
    t: Any,
    kernel: int,
    w: int,
    buffer: int,
    first: int,
    rows: int,
    k: int,
    count: int,
    out: int,
    out_stride: int,
    fresh: bool,
) -> None:
    """out [rows, 64] (+)= inputs k .. k + count of the rows from `first` times w, which begins at input k."""
    scales = sums = group_stride = 0
    x, stride = buffer + 4 * k, 4 * t.width
    if t.format == BF16_DOT:
        x, stride = t.halves + 2 * k, 2 * t.width
        first, rows = first * t.parts, rows * t.parts
    elif t.format == CODE8_DOT or t.format == CODE4_DOT:
        x, stride, group_stride = t.codes + k, t.width, 4 * t.groups
        at = first * group_stride + 4 * (k // t.group)
        scales, sums = t.scales + at, t.sums + at
    elif t.affine:
        group_stride = 4 * t.groups
        sums = t.float_sums + first * group_stride + 4 * (k // t.group)
    multiply(
        kernel,
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
        fresh,
        0,
    )


@compiled
def _finish(t: Any, then: int, tile: Any, second: Any, bias: int, second_bias: int, out: Any) -> None:
    """What becomes of one row of some blocks. tile, second, out: equally wide; biases: addresses or 0."""
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
    adapt: int,
) -> None:
    """out[r] = then(row r of a buffer times a matrix), for rows starts[e] .. starts[e + 1] of each expert e.

    matrix: of the first expert; each has one, or two if GATED. bias: offset in vectors, or -1.
    out: float32 rows of out_width, of which `outputs` numbers are written. adapt: its number among all
    layers' products, if rows of the step have adapters; else -1.
    """
    blocks = int_at(t.matrices, MATRIX_COLUMNS * matrix + BLOCKS)
    row_tile = ROW_TILE // t.parts
    row_tiles = (int_at(starts, experts) + row_tile - 1) // row_tile
    together = max(1, min(BLOCKS_TOGETHER, experts * blocks * row_tiles // (t.threads * ITEMS_PER_THREAD)))
    groups = (blocks + together - 1) // together
    total = experts * groups * row_tiles
    piece = max(1, total // (t.threads * PIECES_PER_THREAD))
    while True:
        # Neighbours are blocks for the same rows, which stay in this thread's cache.
        item, last = take(t, phase, thread, total, piece)
        if item == last:
            return
        for one in range(item, last):
            expert, group = one // row_tiles // groups, one % groups
            first = int_at(starts, expert) + one // groups % row_tiles * row_tile
            rows = min(row_tile, int_at(starts, expert + 1) - first)
            block = group * together
            count = min(together, blocks - block)
            mine = matrix + (2 if then == GATED else 1) * expert
            if rows <= 0:
                continue
            _blocks(
                t, thread, then, mine, block, count, buffer, first, rows, bias, outputs, out, out_width, adapt
            )


@compiled
def _blocks(
    t: Any,
    thread: int,
    then: int,
    matrix: int,
    block: int,
    count: int,
    buffer: int,
    first: int,
    rows: int,
    bias: int,
    outputs: int,
    out: int,
    out_width: int,
    adapt: int,
) -> None:
    """Some rows times some blocks: straight to their place if nothing is left to do there, else to tiles.

    A sum that is added to what is there begins there, or at zero in a tile: which of the two must not depend
    on how many blocks are taken together.
    """
    left = block * 64
    width = min(64 * count, outputs - left)
    place = out + 4 * (first * out_width + left)
    if then <= ADDED and bias < 0 and outputs % 64 == 0 and t.parts == 1:
        _multiply(t, thread, matrix, block, count, buffer, first, rows, place, out_width, then == PLAIN)
        if adapt >= 0:
            add_deltas(t, adapt, (0, DELTAS_PER_PRODUCT), first, rows, block, count, place, out_width)
        return
    tile = t.tiles + thread * 2 * TILE_BYTES
    second = tile + TILE_BYTES
    _multiply(t, thread, matrix, block, count, buffer, first, rows, tile, TILE_WIDTH, True)
    if then == GATED:
        _multiply(t, thread, matrix + 1, block, count, buffer, first, rows, second, TILE_WIDTH, True)
    if t.parts > 1:
        _add_parts(tile, rows, t.parts, 64 * count)
        if then == GATED:
            _add_parts(second, rows, t.parts, 64 * count)
    if adapt >= 0:
        last = 1 if then == GATED else DELTAS_PER_PRODUCT
        add_deltas(t, adapt, (0, last), first, rows, block, count, tile, TILE_WIDTH)
        if then == GATED:
            add_deltas(t, adapt, (1, 2), first, rows, block, count, second, TILE_WIDTH)
    near = t.vectors + 4 * (bias + left) if bias >= 0 else 0
    far = near + 4 * outputs if bias >= 0 else 0
    for i in range(rows):
        at = 4 * i * TILE_WIDTH
        to = floats(place + 4 * i * out_width, width)
        _finish(t, then, floats(tile + at, width), floats(second + at, width), near, far, to)


@compiled
def _add_parts(tile: int, rows: int, parts: int, width: int) -> None:
    """The products of a row's parts, which lie one after the other, to one row of the tile."""
    for i in range(rows):
        total = floats(tile + 4 * i * TILE_WIDTH, width)
        for part in range(parts):
            one = floats(tile + 4 * (i * parts + part) * TILE_WIDTH, width)
            for j in range(width):
                total[j] = one[j] + (total[j] if part else np.float32(0))


@compiled
def _multiply(
    t: Any,
    thread: int,
    matrix: int,
    block: int,
    count: int,
    buffer: int,
    first: int,
    rows: int,
    out: int,
    out_width: int,
    fresh: bool,
) -> None:
    """Some rows times some blocks to rows of out_width float32, added to them unless they are fresh.

    Weights of 16 bits that are multiplied as float32 are widened once for many rows; the sums stay the same.
    """
    place = ints(t.matrices + 8 * MATRIX_COLUMNS * matrix, MATRIX_COLUMNS)
    k, size = place[INPUTS], place[BLOCK_BYTES]
    w = t.weights + place[OFFSET] + block * size
    few = rows <= FEW_ROWS
    widened = rows >= MANY_ROWS and t.f32_kernel != 0
    panel = k if few else min(k, WIDENED_PANEL if widened else PANEL)
    at = 0
    while at < k:
        some = min(panel, k - at)
        for one in range(count):
            part, kernel = w + one * size + size * at // k, t.kernel
            if widened:
                floats_of_part = t.widened + 4 * BLOCK * WIDENED_PANEL * thread
                widen(shorts(part, BLOCK * some), t.format == F16, floats(floats_of_part, BLOCK * some))
                part, kernel = floats_of_part, t.f32_kernel
            to = out + 256 * one
            _product(t, kernel, part, buffer, first, rows, at, some, to, 4 * out_width, fresh and at == 0)
        at += panel
