"""Paged attention on the micro-kernel: decode, drafts, prefill, windows and grouped heads are one loop.

Softmax over keys is split into chunks of 256 keys from the start of the sequence. A chunk gives a partial
result (m, l, o): largest score, sum of exp2(score - m), the values weighted so. Partials are merged in the
order of their chunks, so the bits depend neither on the number of threads nor on who else is in the batch,
and a key that a row does not see adds exactly nothing. Work is split as in "Lean Attention: Hardware-Aware
Scalable Attention Mechanism for the Decode-Phase of Transformers", 2024: all chunks of all heads in one line,
cut into equal runs; only heads that a cut goes through have to be merged afterwards. Keys that sequences
share come first (attention_plan.py); each one's own keys go on from what they gave. A row of a draft tree has
the bits that its path has as a text (paths.py).

Queries and weights are rounded to bfloat16 (BF16_DOT), or to int16 for keys and values in bytes (INT8_DOT).
pages.py says where keys and values lie.

P page of 64 keys  D head size  M rows of one tile: query heads of one key-value head times rows
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lightwork.kernels.cpu.attention_plan import find
from lightwork.kernels.cpu.compiled import compiled
from lightwork.kernels.cpu.formats import BF16_DOT, F32, INT8_DOT, PAGE
from lightwork.kernels.cpu.pages import bytes_per_number, page_of
from lightwork.kernels.cpu.paths import keys_of, lay_keys, lay_values, path_table
from lightwork.kernels.cpu.primitives import bits_at, copy, floats, int32s, int_at, multiply, shorts
from lightwork.kernels.cpu.rowwise import exp2, to_bfloat16, to_shorts
from lightwork.kernels.cpu.softmax import HIDDEN, hide, weigh_floats, weigh_halves
from lightwork.kernels.cpu.state import (
    BEGUN,
    CHUNK,
    CHUNK_PAGES,
    FIRST_CHUNK,
    FIRST_ROW,
    NUM_CHUNKS,
    NUM_ROWS,
    PATH,
    SEQ,
    STAGE,
    UNFINISHED,
)

BYTES_AHEAD = 8192
"""How far ahead of what is read keys and values are fetched, in whole blocks. A core has to ask for some
6 KiB at once to keep memory busy."""


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


# -- one chunk, for some heads of a tile


@compiled
def _row(t: Any, tile: Any, r: int) -> Any:
    return int_at(t.row_order, tile[FIRST_ROW] + r)


@compiled
def _place(t: Any, buffer: int, thread: int, i: int, width: int) -> Any:
    """The address of row i of a thread's tile buffer."""
    return buffer + 4 * (thread * t.tile_rows + i) * width


@compiled
def _operand(t: Any, thread: int, i: int, floats_: int, halves: int, width: int) -> tuple[Any, int]:
    """The address of row i of a thread's queries or weights as they are multiplied, in float32 or in 16 bits,
    and the bytes to the next row."""
    size, buffer = (4, floats_) if t.kv_format == F32 else (2, halves)
    return buffer + size * (thread * t.tile_rows + i) * width, size * width


class Piece(NamedTuple):
    """What a thread goes over at once: a chunk of keys, for the rows of a tile and some neighbouring heads.

    rows: of each head. table: the pages of the chunk; -1 and -2 are laid out for each row of the tile, see
    paths.py. following: address of the keys that are wanted next.
    """

    thread: int
    layer: int
    head: int
    heads: int
    rows: int
    table: Any
    following: int
    tile: Any


@compiled
def attend_chunk(t: Any, piece: Any, ancestors: int, window: int, tile: Any, first_page: int) -> None:
    """The partial result of a piece into part and part_sums, a head's rows after another's."""
    pages, rows = piece.table.shape[0], piece.heads * piece.rows
    scores = _place(t, t.chunk_scores, piece.thread, 0, CHUNK)
    _score_keys(t, piece, scores)
    all_see = min(int_at(t.index, _row(t, tile, 0)) + 1, int_at(t.known, tile[SEQ]))
    for p in range(pages):
        if window or (first_page + p + 1) * PAGE > all_see:
            _hide_keys(t, piece.heads, scores + 4 * p * PAGE, ancestors, window, tile, first_page + p)
    sums = _place(t, t.part_sums, piece.thread, 0, 2)
    if t.kv_format == BF16_DOT:
        halves, stride = _operand(t, piece.thread, 0, t.chunk_scores, t.half_scores, CHUNK)
        weigh_halves(scores, 4 * CHUNK, rows, 4 * pages, halves, stride, sums)
    else:
        weigh_floats(scores, 4 * CHUNK, rows, 4 * pages, 0, 0, sums)
    if t.kv_format == INT8_DOT:
        _encode_weights(t, piece, scores)
    _add_values(t, piece)
    if t.kv_format == INT8_DOT:
        _decode_part(t, piece)


@compiled
def _wanted(t: Any, piece: Any, n: int) -> Any:
    """The address of what is read some way after block n of a piece.

    A block is what a page has of a head. All keys are read before all values, page by page; heads lie side
    by side. So memory is read in long stretches: a page that lies anywhere is a detour for it.
    """
    size = PAGE * bytes_per_number(t)
    key_bytes, value_bytes = t.head_size * size, t.padded_head * size
    blocks = piece.table.shape[0] * piece.heads
    wanted = n + max(1, BYTES_AHEAD // key_bytes)
    if wanted >= 2 * blocks:
        return piece.following + min(wanted - 2 * blocks, piece.heads - 1) * key_bytes
    i = wanted % blocks
    if piece.table[i // piece.heads] < 0:
        return piece.following
    place = page_of(t, piece.layer, piece.table[i // piece.heads], piece.head + i % piece.heads)
    return t.keys + place * key_bytes if wanted < blocks else t.values + place * value_bytes


@compiled
def _score_keys(t: Any, piece: Any, scores: int) -> None:
    """scores = q @ keys."""
    page_bytes, share = t.head_size * PAGE * bytes_per_number(t), t.heads // t.kv_heads
    for n in range(piece.table.shape[0] * piece.heads):
        p, h = n // piece.heads, n % piece.heads
        first, page, head = h * piece.rows, piece.table[p], piece.head + h
        out, wanted = scores + 4 * (first * CHUNK + p * PAGE), _wanted(t, piece, n)
        if page < 0:
            for r in range(piece.rows // share):
                keys, scales = lay_keys(t, piece, r, page, head)
                at = out + 4 * r * share * CHUNK
                _score_page(t, piece.thread, first + r * share, share, keys, scales, at, wanted)
        else:
            place = page_of(t, piece.layer, page, head)
            keys, scales = t.keys + place * page_bytes, t.key_scales + 4 * place * PAGE
            _score_page(t, piece.thread, first, piece.rows, keys, scales, out, wanted)


@compiled
def _score_page(
    t: Any, thread: int, first: int, rows: int, keys: int, scales: int, out: int, wanted: int
) -> None:
    """The scores of a page of keys, for some rows of a tile. wanted: what is fetched meanwhile."""
    x, stride = _operand(t, thread, first, t.q, t.half_q, t.padded_head)
    _product(t.kv_wide, keys, x, stride, rows, out, CHUNK, t.head_size, True, wanted)
    if t.kv_format == INT8_DOT:
        q_scales = floats(_place(t, t.q_scales, thread, first, 1), rows)
        _decode_scores(out, floats(scales, PAGE), q_scales)


@compiled
def _add_values(t: Any, piece: Any) -> None:
    """part = weights @ values."""
    page_bytes, share = t.padded_head * PAGE * bytes_per_number(t), t.heads // t.kv_heads
    blocks = piece.table.shape[0] * piece.heads
    for n in range(blocks):
        p, h = n // piece.heads, n % piece.heads
        first, page, head = h * piece.rows, piece.table[p], piece.head + h
        ahead = _wanted(t, piece, blocks + n)
        if page < 0:
            for r in range(piece.rows // share):
                values, _ = lay_values(t, piece, r, page, head)
                _add_page(t, piece.thread, first + r * share, share, p, values, ahead)
        else:
            values = t.values + page_of(t, piece.layer, page, head) * page_bytes
            _add_page(t, piece.thread, first, piece.rows, p, values, ahead)


@compiled
def _add_page(t: Any, thread: int, first: int, rows: int, p: int, values: int, ahead: int) -> None:
    """part = weights @ values of page p of the chunk, for some rows of a tile; added but for the first."""
    size, part = bytes_per_number(t), _place(t, t.part, thread, first, t.padded_head)
    x, stride = _operand(t, thread, first, t.chunk_scores, t.half_scores, CHUNK)
    x += stride // CHUNK * p * PAGE
    d = 0
    while d < t.padded_head:
        wide, kernel = (64, t.kv_wide) if t.padded_head - d >= 64 else (16, t.kv_narrow)
        out, at, fresh = part + 4 * d, d * PAGE * size, p == 0
        _product(kernel, values + at, x, stride, rows, out, t.padded_head, PAGE, fresh, ahead + at)
        d += wide


@compiled
def _product(
    kernel: int,
    w: int,
    x: int,
    x_stride: int,
    rows: int,
    out: int,
    out_width: int,
    k: int,
    fresh: bool,
    ahead: int,
) -> None:
    """out[:rows] = x[:rows, :k] @ w, added to it unless it is fresh; meanwhile what is ahead is fetched."""
    multiply(kernel, w, 0, x, x_stride, 0, 0, 0, out, 4 * out_width, rows, k, 1, fresh, ahead)


# -- bytes: rows are multiplied as int16 with a scale each, keys and values have one for each token


@compiled
def _decode_scores(scores: int, key_scales: Any, q_scales: Any) -> None:
    """Sums of integers, to the scores of a page."""
    for i in range(q_scales.shape[0]):
        sums, out = int32s(scores + 4 * i * CHUNK, PAGE), floats(scores + 4 * i * CHUNK, PAGE)
        for k in range(PAGE):
            out[k] = np.float32(sums[k]) * (key_scales[k] * q_scales[i])


@compiled
def _encode_weights(t: Any, piece: Any, scores: int) -> None:
    """Weights times the scales of the values, as int16."""
    width = PAGE * piece.table.shape[0]
    for i in range(piece.heads * piece.rows):
        row = floats(scores + 4 * i * CHUNK, width)
        for p in range(piece.table.shape[0]):
            page, head = piece.table[p], piece.head + i // piece.rows
            if page < 0:
                _, at = lay_values(t, piece, i % piece.rows // (t.heads // t.kv_heads), page, head)
            else:
                at = t.value_scales + 4 * page_of(t, piece.layer, page, head) * PAGE
            scales, part = floats(at, PAGE), row[p * PAGE : (p + 1) * PAGE]
            for k in range(PAGE):
                part[k] *= scales[k]
        to, _ = _operand(t, piece.thread, i, t.chunk_scores, t.half_scores, CHUNK)
        floats(_place(t, t.weight_scales, piece.thread, i, 1), 1)[0] = to_shorts(row, shorts(to, width))


@compiled
def _decode_part(t: Any, piece: Any) -> None:
    """Sums of integers, to the partial result."""
    for i in range(piece.heads * piece.rows):
        place = _place(t, t.part, piece.thread, i, t.padded_head)
        sums, out = int32s(place, t.padded_head), floats(place, t.padded_head)
        scale = floats(_place(t, t.weight_scales, piece.thread, i, 1), 1)[0]
        for d in range(t.padded_head):
            out[d] = np.float32(sums[d]) * scale


@compiled
def _hide_keys(t: Any, heads: int, scores: int, ancestors: int, window: int, tile: Any, page: int) -> None:
    share = t.heads // t.kv_heads
    for r in range(tile[NUM_ROWS]):
        row = _row(t, tile, r)
        known = int_at(t.known, int_at(t.seqs, row))
        oldest = int_at(t.row_positions, row) - window + 1 if window else 0
        mask = visible(page, int_at(t.index, row), known, oldest, bits_at(ancestors, row))
        if tile[PATH]:
            mask = visible(page, keys_of(t, row) - 1, keys_of(t, row), oldest, np.uint64(0))
        if mask != ~np.uint64(0):
            for h in range(heads):
                for s in range(share):
                    hide(scores + 4 * ((h * tile[NUM_ROWS] + r) * share + s) * CHUNK, mask)


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
def _pages(t: Any, tile: Any, chunk: int) -> tuple[int, Any]:
    """The first page of a chunk, and where its pages lie that a tile's last row sees."""
    first = chunk * CHUNK_PAGES
    keys = tile[PATH] if tile[PATH] else int_at(t.index, _row(t, tile, tile[NUM_ROWS] - 1)) + 1
    count = min(CHUNK_PAGES, (keys - 1) // PAGE + 1 - first)
    return first, int32s(t.tables + 4 * (tile[SEQ] * t.table_width + first), count)


@compiled
def _first_keys(t: Any, layer: int, plan: int, count: int, unit: int) -> Any:
    """The address of the first page of keys of a unit."""
    tile, head, _, start = find(t, plan, count, unit)
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
    """A row's place in mixed for a query head, and for (m, l) while it is unfinished. row: of the group."""
    out = floats(t.mixed + 4 * (row * t.width + head * t.head_size), t.head_size)
    return out, floats(t.row_sums + 8 * (row * t.heads + head), 2)


@compiled
def _load_queries(t: Any, thread: int, among: int, tile: Any, head: int, heads: int) -> None:
    """The tile's query rows side by side, a head's after another's, and its result set to nothing, or to that
    of the keys before. among: which of its group the layer is, as in all that follows."""
    share = t.heads // t.kv_heads
    width = (t.heads + 2 * t.kv_heads) * t.head_size
    for r in range(tile[NUM_ROWS]):
        number = among * t.rows + _row(t, tile, r)
        for one in range(heads * share):
            h, s = one // share, one % share
            i, column = (h * tile[NUM_ROWS] + r) * share + s, head * share + one
            query = floats(t.qkv + 4 * (number * width + column * t.head_size), t.head_size)
            to, _ = _operand(t, thread, i, t.q, t.half_q, t.padded_head)
            if t.kv_format == F32:
                copy(query, floats(to, t.head_size))
            elif t.kv_format == BF16_DOT:
                to_bfloat16(query, shorts(to, t.head_size + t.head_size % 2))
            else:
                scale = floats(_place(t, t.q_scales, thread, i, 1), 1)
                scale[0] = to_shorts(query, shorts(to, t.head_size))
            out = floats(_place(t, t.out, thread, i, t.padded_head), t.padded_head)
            sums = floats(_place(t, t.out_sums, thread, i, 2), 2)
            out[:] = 0
            sums[0], sums[1] = HIDDEN, np.float32(0)
            if tile[STAGE] == BEGUN:
                before, sums_before = _result(t, number, column)
                copy(before, out)
                copy(sums_before, sums)


@compiled
def _store_result(t: Any, thread: int, among: int, tile: Any, head: int, heads: int) -> None:
    """o / l to the rows of mixed, zeros for a row that saw no key; o while keys are left."""
    share = t.heads // t.kv_heads
    for r in range(tile[NUM_ROWS]):
        for one in range(heads * share):
            h, s = one // share, one % share
            i = (h * tile[NUM_ROWS] + r) * share + s
            to, sums_to = _result(t, among * t.rows + _row(t, tile, r), head * share + one)
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
    """The address of a partial [padded_head + 2] that waits for its head to be merged. cut: counted over
    all layers of the group."""
    return t.partials + 4 * ((cut * t.chunks + chunk) * t.tile_rows + i) * (t.padded_head + 2)


@compiled
def attend_run(
    t: Any,
    thread: int,
    layer: int,
    among: int,
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
        tile, head, heads, start = find(t, plan, count, unit)
        rows = heads * tile[NUM_ROWS] * (t.heads // t.kv_heads)
        last = min(end, start + tile[NUM_CHUNKS])
        whole = unit == start and last == start + tile[NUM_CHUNKS]
        _load_queries(t, thread, among, tile, head, heads)
        for u in range(unit, last):
            chunk = u - start
            first_page, table = _pages(t, tile, tile[FIRST_CHUNK] + chunk)
            if tile[PATH]:
                table = path_table(t, thread, tile, first_page, table)
            # The next run is most likely this thread's too.
            following = _first_keys(t, layer, plan, count, min(u + 1, units - 1))
            piece = Piece(thread, layer, head, heads, rows // heads, table, following, tile)
            attend_chunk(t, piece, ancestors, window, tile, first_page)
            for i in range(rows):
                part = _place(t, t.part, thread, i, t.padded_head)
                part_sums = _place(t, t.part_sums, thread, i, 2)
                if whole:
                    _merge_row(t, thread, i, part, part_sums)
                else:
                    kept = _kept(t, among * runs + _first_cut_after(start, units, runs), chunk, i)
                    copy(floats(part, t.padded_head), floats(kept, t.padded_head))
                    copy(floats(part_sums, 2), floats(kept + 4 * t.padded_head, 2))
        if whole:
            _store_result(t, thread, among, tile, head, heads)
        unit = last


@compiled
def merge_cut(
    t: Any, thread: int, among: int, plan: int, count: int, units: int, runs: int, cut: int
) -> None:
    """Finish the heads that the start of run `cut` goes through, if it is the first cut to do so."""
    unit = units * cut // runs
    tile, head, heads, start = find(t, plan, count, unit)
    if unit == start or _first_cut_after(start, units, runs) != cut:
        return
    _load_queries(t, thread, among, tile, head, heads)
    for chunk in range(tile[NUM_CHUNKS]):
        for i in range(heads * tile[NUM_ROWS] * (t.heads // t.kv_heads)):
            kept = _kept(t, among * runs + cut, chunk, i)
            _merge_row(t, thread, i, kept, kept + 4 * t.padded_head)
    _store_result(t, thread, among, tile, head, heads)
