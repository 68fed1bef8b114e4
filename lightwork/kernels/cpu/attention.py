"""Paged attention on the micro-kernel: decode, drafts, prefill, windows and grouped heads are one loop.

Softmax over keys is split into chunks of 256 keys from the start of the sequence. A chunk gives a partial
result (m, l, o): largest score, sum of exp2(score - m), the values weighted so. Partials are merged in the
order of their chunks, so the bits depend neither on the number of threads nor on who else is in the batch,
and a key that a row does not see adds exactly nothing. Work is split as in "Lean Attention: Hardware-Aware
Scalable Attention Mechanism for the Decode-Phase of Transformers", 2024: all chunks of all heads in one line,
cut into equal runs; only heads that a cut goes through have to be merged afterwards.

Keys of a page lie [D][64], so that a score is one chain over D for 64 keys at once. Values lie [64 keys][64]
for each 64 of D, and [64 keys][16] for each 16 of what is left.

P page of 64 keys  D head size  M rows of one tile: query heads of one key-value head times rows
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from lightwork.kernels.cpu.compiled import bfloat_bits, compiled, intrinsic, summing, types
from lightwork.kernels.cpu.formats import BF16, F32, INT8, PAGE
from lightwork.kernels.cpu.rowwise import EXP2, exp2
from lightwork.kernels.cpu.state import bits_at, floats, int32s, int_at, ints, shorts, signed_bytes
from lightwork.kernels.cpu.tile import multiply
from lightwork.kernels.cpu.vectors import (
    FLOATS,
    I64,
    INTS,
    Builder,
    Value,
    at,
    call,
    float_splat,
    fma,
    fold,
    int_splat,
    load,
    loop,
    splat,
    store,
)

CHUNK_PAGES = 4
CHUNK = PAGE * CHUNK_PAGES
MAX_TILE_ROWS = 64
HIDDEN = np.float32(-1e30)
"""The score of a key that a row does not see."""

SEQ, FIRST_ROW, NUM_ROWS, FIRST_CHUNK, NUM_CHUNKS, UNITS_BEFORE, COLUMNS = range(7)


# -- vector code


@intrinsic
def _largest(typing: Any, address: Any, vectors: Any) -> Any:
    """The largest of 16 * vectors float32."""

    def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
        def body(i: Value, carried: Sequence[Value]) -> list[Value]:
            value = load(b, at(b, args[0], b.shl(i, I64(6))), FLOATS, 4)
            return [call(b, "llvm.maxnum.v16f32", FLOATS, [carried[0], value])]

        (most,) = loop(b, args[1], [float_splat(float(HIDDEN))], body)
        return fold(b, most, lambda x, y: call(b, "llvm.maxnum.v16f32", FLOATS, [x, y]))

    return types.float32(types.int64, types.int64), generate


@intrinsic
def _exp2_all(typing: Any, address: Any, vectors: Any, shift: Any) -> Any:
    """x = exp2(x - shift) for 16 * vectors float32 in place; returns their sum."""

    def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
        down = splat(b, args[2])

        def body(i: Value, carried: Sequence[Value]) -> list[Value]:
            place = at(b, args[0], b.shl(i, I64(6)))
            value = _exp2_vector(b, b.fsub(load(b, place, FLOATS, 4), down))
            store(b, value, place)
            return [b.fadd(carried[0], value)]

        (total,) = loop(b, args[1], [float_splat(0.0)], body)
        return fold(b, total, b.fadd)

    return types.float32(types.int64, types.int64, types.float32), generate


def _exp2_vector(b: Builder, x: Value) -> Value:
    """2^x for x <= 0, and 0 where it is below the smallest normal number."""
    low = float_splat(-126.0)
    inside = call(b, "llvm.maxnum.v16f32", FLOATS, [x, low])
    whole = call(b, "llvm.floor.v16f32", FLOATS, [b.fadd(inside, float_splat(0.5))])
    part = b.fsub(inside, whole)
    power = float_splat(float(np.float32(EXP2[-1])))
    for coefficient in reversed(EXP2[:-1]):
        power = fma(b, power, part, float_splat(float(np.float32(coefficient))))
    bits = b.add(b.bitcast(power, INTS), b.shl(b.fptosi(whole, INTS), int_splat(23)))
    return b.select(b.fcmp_ordered("<", x, low), float_splat(0.0), b.bitcast(bits, FLOATS))


@intrinsic
def _hide(typing: Any, address: Any, visible: Any) -> Any:
    """Give 64 scores whose bit in `visible` is not set the score of a hidden key."""

    def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
        for v in range(4):
            place = at(b, args[0], 64 * v)
            bits = b.trunc(b.lshr(args[1], I64(16 * v)), ir.IntType(16))
            shown = b.bitcast(bits, ir.VectorType(ir.IntType(1), 16))
            store(b, b.select(shown, load(b, place, FLOATS, 4), float_splat(float(HIDDEN))), place)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64), generate


@compiled
def _below(count: int) -> Any:
    """A mask of the lowest `count` bits, for any count."""
    if count <= 0:
        return np.uint64(0)
    if count >= 64:
        return np.uint64(0xFFFFFFFFFFFFFFFF)
    return (np.uint64(1) << np.uint64(count)) - np.uint64(1)


@compiled
def visible(page: int, index: int, known: int, oldest: int, ancestors: Any) -> Any:
    """Which of a page's 64 keys a row sees, as bits.

    Known keys from `oldest` to its own index, and the draft nodes of its ancestors.
    """
    first = page * PAGE
    mask = _below(min(known, index + 1) - first) & ~_below(oldest - first)
    if ancestors != 0:
        shift = known - first
        if 0 <= shift < 64:
            mask |= ancestors << np.uint64(shift)
        elif -64 < shift < 0:
            mask |= ancestors >> np.uint64(-shift)
    return mask


# -- planning, once a step


@compiled
def keep_near_ancestors(t: Any) -> None:
    """Take from windowed_ancestors the draft nodes that the sliding window hides, by distance in position."""
    for r in range(t.rows):
        mask = bits_at(t.ancestors, r)
        if mask != 0:
            root = r - (int_at(t.index, r) - int_at(t.known, int_at(t.seqs, r)))
            for node in range(64):
                bit = np.uint64(1) << np.uint64(node)
                far = int_at(t.row_positions, r) - int_at(t.row_positions, root + node) >= t.window
                if mask & bit and far:
                    mask &= ~bit
        ints(t.windowed_ancestors, r + 1)[r] = np.int64(mask)


@compiled
def plan_tiles(t: Any, window: int, plan: int) -> tuple[int, int]:
    """Cut the rows of each sequence into tiles; returns (tiles, units), a unit being a chunk of a head.

    window: keys a row sees at most; 0 is all. plan: address of the tiles.
    """
    heads = t.heads // t.kv_heads
    per_tile = max(1, MAX_TILE_ROWS // heads)
    seqs, index = ints(t.seqs, t.rows), ints(t.index, t.rows)
    count = units = row = 0
    while row < t.rows:
        last = row
        while last + 1 < t.rows and last + 1 - row < per_tile and seqs[last + 1] == seqs[row]:
            last += 1
        oldest = 0
        if window:
            first = int_at(t.row_positions, row)
            for r in range(row + 1, last + 1):  # branches of a draft begin again near its root
                first = min(first, int_at(t.row_positions, r))
            oldest = max(0, first - window + 1)
        first_chunk = min(oldest, index[row]) // CHUNK
        chunks = index[last] // CHUNK + 1 - first_chunk
        tile = ints(plan + 8 * COLUMNS * count, COLUMNS)
        tile[SEQ], tile[FIRST_ROW], tile[NUM_ROWS] = seqs[row], row, last + 1 - row
        tile[FIRST_CHUNK], tile[NUM_CHUNKS], tile[UNITS_BEFORE] = first_chunk, chunks, units
        units += t.kv_heads * chunks
        count += 1
        row = last + 1
    return count, units


@compiled
def find(plan: int, count: int, unit: int) -> tuple[Any, int, int]:
    """Of a unit: its tile, its head, and the head's first unit."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high + 1) // 2
        if int_at(plan, COLUMNS * middle + UNITS_BEFORE) <= unit:
            low = middle
        else:
            high = middle - 1
    tile = ints(plan + 8 * COLUMNS * low, COLUMNS)
    head = (unit - tile[UNITS_BEFORE]) // tile[NUM_CHUNKS]
    return tile, head, tile[UNITS_BEFORE] + head * tile[NUM_CHUNKS]


# -- one chunk of one tile


@compiled
def _place(t: Any, buffer: int, thread: int, i: int, width: int) -> Any:
    """The address of row i of a thread's tile buffer."""
    return buffer + 4 * (thread * t.tile_rows + i) * width


@compiled
def _product(kernel: int, w: int, x: int, x_width: int, rows: int, out: int, out_width: int, k: int) -> None:
    """out[:rows] += x[:rows, :k] @ w."""
    multiply(kernel, w, 0, x, 4 * x_width, 0, 0, 0, out, 4 * out_width, rows, k, 1)


@compiled
def attend_chunk(
    t: Any, thread: int, layer: int, head: int, ancestors: int, window: int, tile: Any, chunk: int
) -> None:
    """The partial result of a tile's rows over one chunk, into this thread's part and part_sums."""
    rows = tile[NUM_ROWS] * (t.heads // t.kv_heads)
    first_page = chunk * CHUNK_PAGES
    last_row = tile[FIRST_ROW] + tile[NUM_ROWS] - 1
    pages = min(CHUNK_PAGES, int_at(t.index, last_row) // PAGE + 1 - first_page)
    table = int32s(t.tables + 4 * (tile[SEQ] * t.table_width + first_page), pages)
    scores = _place(t, t.chunk_scores, thread, 0, CHUNK)
    part = _place(t, t.part, thread, 0, t.padded_head)
    size = 4 if t.kv_format == F32 else 2 if t.kv_format == BF16 else 1
    floats(scores, rows * CHUNK)[:] = 0
    floats(part, rows * t.padded_head)[:] = 0
    for p in range(pages):
        place = (layer * t.pages + table[p]) * t.kv_heads + head
        at = scores + 4 * p * PAGE
        keys = t.keys + place * t.head_size * PAGE * size
        q = _place(t, t.q, thread, 0, t.padded_head)
        _product(t.kv_wide, keys, q, t.padded_head, rows, at, CHUNK, t.head_size)
        if t.kv_format == INT8:
            _scale_by_token(at, rows, floats(t.key_scales + 4 * place * PAGE, PAGE))
        _hide_keys(t, at, ancestors, window, tile, first_page + p)
    for i in range(rows):
        _weigh(scores + 4 * i * CHUNK, 4 * pages, floats(_place(t, t.part_sums, thread, i, 2), 2))
    for p in range(pages):
        place = (layer * t.pages + table[p]) * t.kv_heads + head
        at = scores + 4 * p * PAGE
        if t.kv_format == INT8:
            _scale_by_token(at, rows, floats(t.value_scales + 4 * place * PAGE, PAGE))
        d = 0
        while d < t.padded_head:
            wide = t.padded_head - d >= 64
            values = t.values + (place * t.padded_head + d) * PAGE * size
            kernel = t.kv_wide if wide else t.kv_narrow
            _product(kernel, values, at, CHUNK, rows, part + 4 * d, t.padded_head, PAGE)
            d += 64 if wide else 16


@compiled
def _weigh(scores: int, vectors: int, sums: Any) -> None:
    """Scores become exp2(score - largest); sums: the largest, and their total."""
    sums[0] = _largest(scores, vectors)
    if sums[0] > HIDDEN:
        sums[1] = _exp2_all(scores, vectors, sums[0])
    else:
        sums[1] = 0
        floats(scores, 16 * vectors)[:] = 0


@compiled
def _scale_by_token(scores: int, rows: int, scales: Any) -> None:
    for i in range(rows):
        part = floats(scores + 4 * i * CHUNK, PAGE)
        for k in range(PAGE):
            part[k] *= scales[k]


@compiled
def _hide_keys(t: Any, scores: int, ancestors: int, window: int, tile: Any, page: int) -> None:
    heads = t.heads // t.kv_heads
    known = int_at(t.known, tile[SEQ])
    for r in range(tile[NUM_ROWS]):
        row = tile[FIRST_ROW] + r
        oldest = int_at(t.row_positions, row) - window + 1 if window else 0
        mask = visible(page, int_at(t.index, row), known, oldest, bits_at(ancestors, row))
        if mask != ~np.uint64(0):
            for h in range(heads):
                _hide(scores + 4 * (r * heads + h) * CHUNK, mask)


# -- merging, and the whole


@compiled
def merge(out: Any, out_sums: Any, part: Any, part_sums: Any) -> None:
    """One row: (m, l, o) of out merged with a later partial; the identity is (HIDDEN, 0, 0)."""
    most = max(out_sums[0], part_sums[0])
    ours, theirs = exp2(out_sums[0] - most), exp2(part_sums[0] - most)
    out_sums[0] = most
    out_sums[1] = out_sums[1] * ours + part_sums[1] * theirs
    for d in range(out.shape[0]):
        out[d] = out[d] * ours + part[d] * theirs


@compiled
def _merge_row(t: Any, thread: int, i: int, part: int, part_sums: int) -> None:
    merge(
        floats(_place(t, t.out, thread, i, t.padded_head), t.padded_head),
        floats(_place(t, t.out_sums, thread, i, 2), 2),
        floats(part, t.padded_head),
        floats(part_sums, 2),
    )


@compiled
def _load_queries(t: Any, thread: int, tile: Any, head: int) -> None:
    """The tile's query rows side by side, and its result set to nothing."""
    heads = t.heads // t.kv_heads
    width = (t.heads + 2 * t.kv_heads) * t.head_size
    for r in range(tile[NUM_ROWS]):
        row = t.qkv + 4 * ((tile[FIRST_ROW] + r) * width + head * heads * t.head_size)
        for h in range(heads):
            i = r * heads + h
            query = floats(row + 4 * h * t.head_size, t.head_size)
            to = floats(_place(t, t.q, thread, i, t.padded_head), t.head_size)
            for d in range(t.head_size):
                to[d] = query[d]
            floats(_place(t, t.out, thread, i, t.padded_head), t.padded_head)[:] = 0
            sums = floats(_place(t, t.out_sums, thread, i, 2), 2)
            sums[0], sums[1] = HIDDEN, np.float32(0)


@compiled
def _store_result(t: Any, thread: int, tile: Any, head: int) -> None:
    """o / l to the rows of mixed; zeros for a row that saw no key."""
    heads = t.heads // t.kv_heads
    for r in range(tile[NUM_ROWS]):
        for h in range(heads):
            i = r * heads + h
            total = floats(_place(t, t.out_sums, thread, i, 2), 2)[1]
            inverse = np.float32(1) / total if total > 0 else np.float32(0)
            ours = floats(_place(t, t.out, thread, i, t.padded_head), t.head_size)
            at = (tile[FIRST_ROW] + r) * t.width + (head * heads + h) * t.head_size
            to = floats(t.mixed + 4 * at, t.head_size)
            for d in range(t.head_size):
                to[d] = ours[d] * inverse


@compiled
def _first_cut_after(unit: int, units: int, runs: int) -> int:
    """The first run that starts after a unit."""
    run = unit * runs // units
    while units * run // runs <= unit:
        run += 1
    return run


@compiled
def _kept(t: Any, cut: int, chunk: int, i: int) -> Any:
    """The address of a partial [padded_head + 2] that waits for its head to be merged."""
    return t.partials + 4 * ((cut * t.chunks + chunk) * t.tile_rows + i) * (t.padded_head + 2)


@compiled
def attend_run(
    t: Any,
    thread: int,
    layer: int,
    ancestors: int,
    window: int,
    plan: int,
    count: int,
    units: int,
    runs: int,
    run: int,
) -> None:
    """One run of units. Heads that lie wholly in it are finished; of the others the partials are kept."""
    unit, end = units * run // runs, units * (run + 1) // runs
    while unit < end:
        tile, head, start = find(plan, count, unit)
        last = min(end, start + tile[NUM_CHUNKS])
        whole = unit == start and last == start + tile[NUM_CHUNKS]
        _load_queries(t, thread, tile, head)
        for u in range(unit, last):
            chunk = u - start
            attend_chunk(t, thread, layer, head, ancestors, window, tile, tile[FIRST_CHUNK] + chunk)
            for i in range(tile[NUM_ROWS] * (t.heads // t.kv_heads)):
                part = _place(t, t.part, thread, i, t.padded_head)
                part_sums = _place(t, t.part_sums, thread, i, 2)
                if whole:
                    _merge_row(t, thread, i, part, part_sums)
                else:
                    kept = _kept(t, _first_cut_after(start, units, runs), chunk, i)
                    floats(kept, t.padded_head)[:] = floats(part, t.padded_head)
                    floats(kept + 4 * t.padded_head, 2)[:] = floats(part_sums, 2)
        if whole:
            _store_result(t, thread, tile, head)
        unit = last


@compiled
def merge_cut(t: Any, thread: int, plan: int, count: int, units: int, runs: int, cut: int) -> None:
    """Finish the head that the start of run `cut` goes through, if it is the first cut to do so."""
    unit = units * cut // runs
    tile, head, start = find(plan, count, unit)
    if unit == start or _first_cut_after(start, units, runs) != cut:
        return
    _load_queries(t, thread, tile, head)
    for chunk in range(tile[NUM_CHUNKS]):
        for i in range(tile[NUM_ROWS] * (t.heads // t.kv_heads)):
            kept = _kept(t, cut, chunk, i)
            _merge_row(t, thread, i, kept, kept + 4 * t.padded_head)
    _store_result(t, thread, tile, head)


# -- the pool


@compiled
def store_token(t: Any, layer: int, slot: int, head: int, key: Any, value: Any) -> None:
    """Write one token's key and value [D] of one head at a slot (page * 64 + offset)."""
    page, k = slot // PAGE, slot % PAGE
    place = (layer * t.pages + page) * t.kv_heads + head
    at_key, at_value = place * t.head_size * PAGE, place * t.padded_head * PAGE
    if t.kv_format == INT8:
        key_scale, value_scale = _byte_scale(key), _byte_scale(value)
        floats(t.key_scales + 4 * place * PAGE, PAGE)[k] = key_scale
        floats(t.value_scales + 4 * place * PAGE, PAGE)[k] = value_scale
        keys = signed_bytes(t.keys + at_key, t.head_size * PAGE)
        values = signed_bytes(t.values + at_value, t.padded_head * PAGE)
        for d in range(key.shape[0]):
            keys[d * PAGE + k] = np.int8(np.rint(key[d] / key_scale))
            values[value_place(d, k, t.padded_head)] = np.int8(np.rint(value[d] / value_scale))
    elif t.kv_format == BF16:
        halves = shorts(t.keys + 2 * at_key, t.head_size * PAGE)
        value_halves = shorts(t.values + 2 * at_value, t.padded_head * PAGE)
        for d in range(key.shape[0]):
            halves[d * PAGE + k] = bfloat_bits(key[d])
            value_halves[value_place(d, k, t.padded_head)] = bfloat_bits(value[d])
    else:
        wide = floats(t.keys + 4 * at_key, t.head_size * PAGE)
        value_wide = floats(t.values + 4 * at_value, t.padded_head * PAGE)
        for d in range(key.shape[0]):
            wide[d * PAGE + k] = key[d]
            value_wide[value_place(d, k, t.padded_head)] = value[d]


@compiled
def value_place(d: int, k: int, width: int) -> int:
    """Where number d of the value of token k of a page is, in a head of padded size `width`."""
    block = d // 64 * 64
    if block + 64 <= width:
        return block * PAGE + k * 64 + d - block
    return d // 16 * 16 * PAGE + k * 16 + d % 16


@summing
def _byte_scale(x: Any) -> Any:
    most = np.float32(0)
    for d in range(x.shape[0]):
        most = max(most, abs(x[d]))
    return most / np.float32(127) if most > 0 else np.float32(1)


@compiled
def copy_token(keys: Any, values: Any, src: int, dst: int) -> None:
    """Copy a token from slot to slot, in all layers and heads. keys, values: [L, pages, G, size * 64]."""
    size, width = keys.shape[3] // PAGE, values.shape[3] // PAGE
    for layer in range(keys.shape[0]):
        for head in range(keys.shape[2]):
            one, other = keys[layer, src // PAGE, head], keys[layer, dst // PAGE, head]
            for d in range(size):
                other[d * PAGE + dst % PAGE] = one[d * PAGE + src % PAGE]
            one, other = values[layer, src // PAGE, head], values[layer, dst // PAGE, head]
            for d in range(width):
                other[value_place(d, dst % PAGE, width)] = one[value_place(d, src % PAGE, width)]
