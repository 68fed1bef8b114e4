"""Paged attention on the micro-kernel: decode, drafts, prefill, windows and grouped heads are one loop.

Softmax over keys is split into chunks of 256 keys from the start of the sequence. A chunk gives a partial
result (m, l, o): largest score, sum of exp2(score - m), the values weighted so. Partials are merged in the
order of their chunks, so the bits depend neither on the number of threads nor on who else is in the batch,
and a key that a row does not see adds exactly nothing. Work is split as in "Lean Attention: Hardware-Aware
Scalable Attention Mechanism for the Decode-Phase of Transformers", 2024: all chunks of all heads in one line,
cut into equal runs; only heads that a cut goes through have to be merged afterwards. Keys that sequences
share come first (attention_plan.py); each one's own keys go on from what they gave.

In bfloat16, queries and weights are rounded to it too (BF16_DOT). pages.py says where keys and values lie.

P page of 64 keys  D head size  M rows of one tile: query heads of one key-value head times rows
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightwork.kernels.cpu.attention_plan import find
from lightwork.kernels.cpu.compiled import compiled
from lightwork.kernels.cpu.formats import BF16_DOT, INT8, PAGE
from lightwork.kernels.cpu.pages import bytes_per_number, page_of
from lightwork.kernels.cpu.primitives import bits_at, copy, floats, int32s, int_at, multiply, shorts
from lightwork.kernels.cpu.rowwise import exp2, to_bfloat16
from lightwork.kernels.cpu.softmax import HIDDEN, fetch, hide, weigh_floats, weigh_halves
from lightwork.kernels.cpu.state import (
    BEGUN,
    CHUNK,
    CHUNK_PAGES,
    FIRST_CHUNK,
    FIRST_ROW,
    NUM_CHUNKS,
    NUM_ROWS,
    SEQ,
    STAGE,
    UNFINISHED,
)

FEW_ROWS, PART = 8, 32
"""Up to so many rows a page is streamed, so many of its inputs at a time, while the next one is fetched.

A part of bfloat16 begins where a product of matrix registers begins (amx.py)."""


# -- who sees what


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


# -- one chunk of one tile


@compiled
def _row(t: Any, tile: Any, r: int) -> Any:
    return int_at(t.row_order, tile[FIRST_ROW] + r)


@compiled
def _place(t: Any, buffer: int, thread: int, i: int, width: int) -> Any:
    """The address of row i of a thread's tile buffer."""
    return buffer + 4 * (thread * t.tile_rows + i) * width


@compiled
def _product(
    kernel: int, w: int, x: int, x_stride: int, rows: int, out: int, out_width: int, k: int, fresh: bool
) -> None:
    """out[:rows] = x[:rows, :k] @ w, added to it unless it is fresh."""
    multiply(kernel, w, 0, x, x_stride, 0, 0, 0, out, 4 * out_width, rows, k, 1, fresh)


@compiled
def attend_chunk(
    t: Any,
    thread: int,
    layer: int,
    head: int,
    ancestors: int,
    window: int,
    tile: Any,
    chunk: int,
    following: int,
) -> None:
    """The partial result of a tile's rows over one chunk, into this thread's part and part_sums.

    following: address of the keys that are wanted next, or 0.
    """
    rows = tile[NUM_ROWS] * (t.heads // t.kv_heads)
    first_page = chunk * CHUNK_PAGES
    last_row = _row(t, tile, tile[NUM_ROWS] - 1)
    pages = min(CHUNK_PAGES, int_at(t.index, last_row) // PAGE + 1 - first_page)
    table = int32s(t.tables + 4 * (tile[SEQ] * t.table_width + first_page), pages)
    scores = _place(t, t.chunk_scores, thread, 0, CHUNK)
    _score_keys(t, thread, layer, head, table, pages, rows, scores)
    all_see = min(int_at(t.index, _row(t, tile, 0)) + 1, int_at(t.known, tile[SEQ]))
    for p in range(pages):
        if window or (first_page + p + 1) * PAGE > all_see:
            _hide_keys(t, scores + 4 * p * PAGE, ancestors, window, tile, first_page + p)
    sums = _place(t, t.part_sums, thread, 0, 2)
    if t.kv_format == BF16_DOT:
        halves = t.half_scores + 2 * thread * t.tile_rows * CHUNK
        weigh_halves(scores, 4 * CHUNK, rows, 4 * pages, halves, 2 * CHUNK, sums)
    else:
        weigh_floats(scores, 4 * CHUNK, rows, 4 * pages, 0, 0, sums)
    _add_values(t, thread, layer, head, table, pages, rows, scores, following)


@compiled
def _stream(
    kernel: int,
    fresh: bool,
    w: int,
    x: int,
    x_stride: int,
    rows: int,
    out: int,
    out_width: int,
    k: int,
    wide: int,
    size: int,
    ahead: int,
    ahead_bytes: int,
) -> None:
    """out (+)= x @ w for 16 * wide outputs, while what is wanted next is fetched.

    size: bytes of a number of w. With few rows memory is the bound: pages lie anywhere, and the processor
    cannot foresee the next one. Asked for at once it stalls.
    """  # fmt: skip
    if rows > FEW_ROWS:
        _product(kernel, w, x, x_stride, rows, out, out_width, k, fresh)
        return
    x_size = 2 if size == 2 else 4
    at = 0
    while at < k:
        count = min(PART, k - at)
        begin, end = ahead_bytes // 64 * at // k, ahead_bytes // 64 * (at + count) // k
        if ahead and begin < end:
            fetch(ahead + 64 * begin, end - begin)
        part, some = w + at * 16 * wide * size, x + at * x_size
        _product(kernel, part, some, x_stride, rows, out, out_width, count, fresh and at == 0)
        at += count


@compiled
def _score_keys(
    t: Any, thread: int, layer: int, head: int, table: Any, pages: int, rows: int, scores: int
) -> None:
    """scores = q @ keys, page by page. The next page is fetched meanwhile, then the first values."""
    size = bytes_per_number(t)
    page_bytes, value_bytes = t.head_size * PAGE * size, t.padded_head * PAGE * size
    q, stride = _place(t, t.q, thread, 0, t.padded_head), 4 * t.padded_head
    if t.kv_format == BF16_DOT:
        q, stride = t.half_q + 2 * thread * t.tile_rows * t.padded_head, 2 * t.padded_head
    for p in range(pages):
        place = page_of(t, layer, table[p], head)
        ahead, ahead_bytes = t.values + page_of(t, layer, table[0], head) * value_bytes, value_bytes
        if p + 1 < pages:
            ahead, ahead_bytes = t.keys + page_of(t, layer, table[p + 1], head) * page_bytes, page_bytes
        at, keys = scores + 4 * p * PAGE, t.keys + place * page_bytes
        _stream(t.kv_wide, True, keys, q, stride, rows, at, CHUNK, t.head_size, 4, size, ahead, ahead_bytes)
        if t.kv_format == INT8:
            _scale_by_token(at, rows, floats(t.key_scales + 4 * place * PAGE, PAGE))


@compiled
def _add_values(
    t: Any, thread: int, layer: int, head: int, table: Any, pages: int, rows: int, scores: int, following: int
) -> None:
    """part = weights @ values, page by page. The next page is fetched meanwhile, then the following keys."""
    part = _place(t, t.part, thread, 0, t.padded_head)
    size = bytes_per_number(t)
    page_bytes = t.padded_head * PAGE * size
    for p in range(pages):
        place = page_of(t, layer, table[p], head)
        ahead = following
        if p + 1 < pages:
            ahead = t.values + page_of(t, layer, table[p + 1], head) * page_bytes
        x, stride = scores + 4 * p * PAGE, 4 * CHUNK
        if t.kv_format == INT8:
            _scale_by_token(x, rows, floats(t.value_scales + 4 * place * PAGE, PAGE))
        elif t.kv_format == BF16_DOT:
            x, stride = t.half_scores + 2 * (thread * t.tile_rows * CHUNK + p * PAGE), 2 * CHUNK
        d = 0
        while d < t.padded_head:
            wide = 4 if t.padded_head - d >= 64 else 1
            values, to = t.values + (place * t.padded_head + d) * PAGE * size, part + 4 * d
            kernel, some = t.kv_wide if wide == 4 else t.kv_narrow, 16 * wide * PAGE * size
            ahead_of_d = ahead + d * PAGE * size if ahead else 0
            _stream(
                kernel, p == 0, values, x, stride, rows, to, t.padded_head, PAGE, wide, size, ahead_of_d, some
            )
            d += 16 * wide


@compiled
def _scale_by_token(scores: int, rows: int, scales: Any) -> None:
    for i in range(rows):
        part = floats(scores + 4 * i * CHUNK, PAGE)
        for k in range(PAGE):
            part[k] *= scales[k]


@compiled
def _hide_keys(t: Any, scores: int, ancestors: int, window: int, tile: Any, page: int) -> None:
    heads = t.heads // t.kv_heads
    for r in range(tile[NUM_ROWS]):
        row = _row(t, tile, r)
        known = int_at(t.known, int_at(t.seqs, row))
        oldest = int_at(t.row_positions, row) - window + 1 if window else 0
        mask = visible(page, int_at(t.index, row), known, oldest, bits_at(ancestors, row))
        if mask != ~np.uint64(0):
            for h in range(heads):
                hide(scores + 4 * (r * heads + h) * CHUNK, mask)


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
def _first_keys(t: Any, layer: int, plan: int, count: int, unit: int) -> Any:
    """The address of the first page of keys of a unit."""
    tile, head, start = find(plan, count, unit)
    page = (tile[FIRST_CHUNK] + unit - start) * CHUNK_PAGES
    block = int32s(t.tables + 4 * (tile[SEQ] * t.table_width + page), 1)[0]
    return t.keys + page_of(t, layer, block, head) * t.head_size * PAGE * bytes_per_number(t)


@compiled
def _merge_row(t: Any, thread: int, i: int, part: int, part_sums: int) -> None:
    merge(
        floats(_place(t, t.out, thread, i, t.padded_head), t.padded_head),
        floats(_place(t, t.out_sums, thread, i, 2), 2),
        floats(part, t.padded_head),
        floats(part_sums, 2),
    )


@compiled
def _result(t: Any, row: int, head: int) -> tuple[Any, Any]:
    """A row's place in mixed for a query head, and for (m, l) while it is unfinished."""
    out = floats(t.mixed + 4 * (row * t.width + head * t.head_size), t.head_size)
    return out, floats(t.row_sums + 8 * (row * t.heads + head), 2)


@compiled
def _load_queries(t: Any, thread: int, tile: Any, head: int) -> None:
    """The tile's query rows side by side, and its result set to nothing, or to that of the keys before."""
    heads = t.heads // t.kv_heads
    width = (t.heads + 2 * t.kv_heads) * t.head_size
    for r in range(tile[NUM_ROWS]):
        number = _row(t, tile, r)
        row = t.qkv + 4 * (number * width + head * heads * t.head_size)
        for h in range(heads):
            i = r * heads + h
            query = floats(row + 4 * h * t.head_size, t.head_size)
            to = floats(_place(t, t.q, thread, i, t.padded_head), t.head_size)
            for d in range(t.head_size):
                to[d] = query[d]
            if t.kv_format == BF16_DOT:
                halves = t.half_q + 2 * (thread * t.tile_rows + i) * t.padded_head
                to_bfloat16(query, shorts(halves, t.head_size + t.head_size % 2))
            out = floats(_place(t, t.out, thread, i, t.padded_head), t.padded_head)
            sums = floats(_place(t, t.out_sums, thread, i, 2), 2)
            out[:] = 0
            sums[0], sums[1] = HIDDEN, np.float32(0)
            if tile[STAGE] == BEGUN:
                before, sums_before = _result(t, number, head * heads + h)
                copy(before, out)
                copy(sums_before, sums)


@compiled
def _store_result(t: Any, thread: int, tile: Any, head: int) -> None:
    """o / l to the rows of mixed, zeros for a row that saw no key; o while keys are left."""
    heads = t.heads // t.kv_heads
    for r in range(tile[NUM_ROWS]):
        for h in range(heads):
            i = r * heads + h
            to, sums_to = _result(t, _row(t, tile, r), head * heads + h)
            sums = floats(_place(t, t.out_sums, thread, i, 2), 2)
            total = sums[1]
            inverse = np.float32(1) / total if total > 0 else np.float32(0)
            if tile[STAGE] == UNFINISHED:
                copy(sums, sums_to)
                inverse = np.float32(1)
            ours = floats(_place(t, t.out, thread, i, t.padded_head), t.head_size)
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
            following = _first_keys(t, layer, plan, count, u + 1) if u + 1 < end else 0
            attend_chunk(
                t, thread, layer, head, ancestors, window, tile, tile[FIRST_CHUNK] + chunk, following
            )
            for i in range(tile[NUM_ROWS] * (t.heads // t.kv_heads)):
                part = _place(t, t.part, thread, i, t.padded_head)
                part_sums = _place(t, t.part_sums, thread, i, 2)
                if whole:
                    _merge_row(t, thread, i, part, part_sums)
                else:
                    kept = _kept(t, _first_cut_after(start, units, runs), chunk, i)
                    copy(floats(part, t.padded_head), floats(kept, t.padded_head))
                    copy(floats(part_sums, 2), floats(kept + 4 * t.padded_head, 2))
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
