"""Which rows go over which keys together in a step's attention: planned once, for all layers.

Sequences that begin with the same pages form a group. Their rows go over the chunks they share as one tile,
so that keys and values are read once; then each goes on over its own. A sequence is in one group, as in
"BatchLLM: Optimizing Large Batched LLM Inference with Global Prefix Sharing and Throughput-oriented Token
Batching", 2024; groups are chosen to save the most. Chunks begin where they do without sharing and are
merged in the same order, so the bits are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightwork.kernels.cpu.compiled import compiled
from lightwork.kernels.cpu.paths import forget_paths, keys_of, lies_apart
from lightwork.kernels.cpu.primitives import bits_at, copy, int32s, int_at, ints
from lightwork.kernels.cpu.state import (
    ALIKE,
    ALONE,
    BEGUN,
    CHUNK,
    CHUNK_PAGES,
    FIRST_CHUNK,
    FIRST_OF_GROUP,
    FIRST_ROW,
    HEADS,
    MAX_TILE_ROWS,
    MEMBER_COLUMNS,
    NUM_CHUNKS,
    NUM_ROWS,
    PATH,
    PLAN_COLUMNS,
    SAVED,
    SEQ,
    STAGE,
    UNFINISHED,
    UNITS_BEFORE,
)

UNITS_PER_THREAD = 4
"""So many at least, where there are as many chunks of heads: threads end together."""


@compiled
def plan_attention(t: Any) -> None:
    """Plan a step: its groups, and the tiles of layers without and with a window."""
    forget_paths(t)
    members = _sort_sequences(t)
    _choose_groups(t, members)
    _order_rows(t, members)
    _plan_tiles(t, members, 0, t.plan)
    if t.window:
        _keep_near_ancestors(t)
        _plan_tiles(t, members, t.window, t.windowed_plan)


@compiled
def _keep_near_ancestors(t: Any) -> None:
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


# -- groups


@compiled
def _member(t: Any, i: int) -> Any:
    return ints(t.members + 8 * MEMBER_COLUMNS * i, MEMBER_COLUMNS)


@compiled
def _sort_sequences(t: Any) -> int:
    """Sequences into members, those with the same first pages side by side; how many there are."""
    count = row = 0
    while row < t.rows:
        seq, first = int_at(t.seqs, row), row
        while row < t.rows and int_at(t.seqs, row) == seq:
            row += 1
        at = count
        while at > 0 and _is_before(t, seq, _member(t, at - 1)[SEQ]):
            copy(_member(t, at - 1), _member(t, at))
            at -= 1
        member = _member(t, at)
        member[SEQ], member[FIRST_ROW], member[NUM_ROWS] = seq, first, row - first
        count += 1
    return count


@compiled
def _is_before(t: Any, seq: int, other: int) -> bool:
    """By the last pages of chunks: an order that brings together what shares any."""
    ours = int32s(t.tables + 4 * seq * t.table_width, t.table_width)
    theirs = int32s(t.tables + 4 * other * t.table_width, t.table_width)
    page = CHUNK_PAGES - 1
    while page < t.table_width and ours[page] == theirs[page] and ours[page] >= 0:
        page += CHUNK_PAGES
    return bool(page < t.table_width and ours[page] < theirs[page])


@compiled
def _chunks_alike(t: Any, member: Any, other: Any) -> int:
    """Chunks from the start that two sequences share and all of their rows see, if there is no window."""
    most = t.table_width // CHUNK_PAGES
    for one in (member, other):
        most = min(most, min(int_at(t.index, one[FIRST_ROW]), int_at(t.known, one[SEQ])) // CHUNK)
    ours = int32s(t.tables + 4 * member[SEQ] * t.table_width, t.table_width)
    theirs = int32s(t.tables + 4 * other[SEQ] * t.table_width, t.table_width)
    page = 0
    while page < most * CHUNK_PAGES and ours[page] == theirs[page]:
        page += 1
    return page // CHUNK_PAGES


@compiled
def _choose_groups(t: Any, members: int) -> None:
    """Cut the members into groups that save the most chunks: of each its group's first, and its chunks."""
    for i in range(members):
        member = _member(t, i)
        member[ALIKE] = _chunks_alike(t, member, _member(t, i + 1)) if i + 1 < members else 0
        # The best of all cuts where a group ends here: this member alone, or with some before it.
        member[FIRST_OF_GROUP], member[SAVED] = i, _saved_before(t, i)
        alike, first = t.table_width, i - 1
        while first >= 0:
            alike = min(alike, _member(t, first)[ALIKE])
            if alike < t.least_alike:
                break
            saved = _saved_before(t, first) + (i - first) * alike
            if saved > member[SAVED]:
                member[FIRST_OF_GROUP], member[SAVED] = first, saved
            first -= 1
    last = members - 1
    while last >= 0:
        first = _member(t, last)[FIRST_OF_GROUP]
        alike = t.table_width if first < last else 0
        for i in range(first, last):
            alike = min(alike, _member(t, i)[ALIKE])
        for i in range(first, last + 1):
            _member(t, i)[FIRST_OF_GROUP], _member(t, i)[ALIKE] = first, alike
        last = first - 1


@compiled
def _saved_before(t: Any, i: int) -> Any:
    return _member(t, i - 1)[SAVED] if i else 0


# -- tiles


@compiled
def _order_rows(t: Any, members: int) -> None:
    """Rows in the order of members."""
    order, at = ints(t.row_order, t.rows), 0
    for i in range(members):
        member = _member(t, i)
        for r in range(member[NUM_ROWS]):
            order[at] = member[FIRST_ROW] + r
            at += 1


@compiled
def _plan_tiles(t: Any, members: int, window: int, plan: int) -> None:
    """The plan of layers with this window (0: none): how many tiles and units, those of groups and those of
    sequences, then the tiles. A unit is a chunk of some heads."""
    head, tiles = ints(plan, PLAN_COLUMNS), plan + 8 * PLAN_COLUMNS
    count = units = row = first = 0
    for i in range(members):
        member = _member(t, i)
        first = row if member[FIRST_OF_GROUP] == i else first
        row += member[NUM_ROWS]
        is_last = i + 1 == members or _member(t, i + 1)[FIRST_OF_GROUP] == i + 1
        if is_last and member[ALIKE]:
            count, units = _cut(t, window, tiles, count, units, first, row, member[ALIKE], UNFINISHED)
    head[0], head[1] = count, units
    tiles += 8 * PLAN_COLUMNS * count
    count = units = row = 0
    for i in range(members):
        member = _member(t, i)
        first, row = row, row + member[NUM_ROWS]
        stage = BEGUN if member[ALIKE] else ALONE
        count, units = _cut(t, window, tiles, count, units, first, row, member[ALIKE], stage)
    head[2], head[3] = count, units


@compiled
def _cut(
    t: Any, window: int, tiles: int, count: int, units: int, row: int, end: int, alike: int, stage: int
) -> tuple[int, int]:
    """Cut rows of row_order into tiles over the first `alike` chunks, or the others; the new counts."""
    per_tile = max(1, MAX_TILE_ROWS // (t.heads // t.kv_heads))
    order = ints(t.row_order, t.rows)
    while row < end:
        last = min(end, row + per_tile) - 1
        path = 0 if stage == UNFINISHED else _longest_path(t, row, last)
        keys = path if path else int_at(t.index, order[last]) + 1
        oldest = 0
        if window:
            first = int_at(t.row_positions, order[row])
            for r in range(row + 1, last + 1):  # branches of a draft begin again near its root
                first = min(first, int_at(t.row_positions, order[r]))
            oldest = max(0, first - window + 1)
        begin = min(oldest, int_at(t.index, order[row])) // CHUNK
        stop = (keys - 1) // CHUNK + 1
        if stage == UNFINISHED:  # one chunk at least, though nobody may see it
            begin, stop = min(begin, alike - 1), alike
        else:
            begin = max(begin, alike)
        tile = ints(tiles + 8 * PLAN_COLUMNS * count, PLAN_COLUMNS)
        tile[SEQ], tile[FIRST_ROW], tile[NUM_ROWS] = int_at(t.seqs, order[row]), row, last + 1 - row
        tile[FIRST_CHUNK], tile[NUM_CHUNKS], tile[PATH] = begin, stop - begin, path
        tile[UNITS_BEFORE], tile[STAGE], tile[HEADS] = units, stage, _heads_together(t, tile)
        units += (t.kv_heads + tile[HEADS] - 1) // tile[HEADS] * tile[NUM_CHUNKS]
        count += 1
        row = last + 1
    return count, units


@compiled
def _longest_path(t: Any, row: int, last: int) -> int:
    """The most keys that one of the rows from `row` to `last` sees; 0 if no ancestors lie apart."""
    order, most = ints(t.row_order, t.rows), 0
    for r in range(row, last + 1):
        if lies_apart(t, order[r]):
            for other in range(row, last + 1):
                most = max(most, keys_of(t, order[other]))
            return most
    return 0


@compiled
def _heads_together(t: Any, tile: Any) -> Any:
    """Heads of a unit: what lies side by side is read together, as long as there is work for all threads."""
    rows = tile[NUM_ROWS] * (t.heads // t.kv_heads)
    most = t.kv_heads * tile[NUM_CHUNKS] // (t.threads * UNITS_PER_THREAD)
    return max(1, min(t.kv_heads, min(t.tile_rows // rows, most)))


@compiled
def find(t: Any, plan: int, count: int, unit: int) -> tuple[Any, int, int, int]:
    """Of a unit: its tile, its first head, its number of heads, and the first unit of these."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high + 1) // 2
        if int_at(plan, PLAN_COLUMNS * middle + UNITS_BEFORE) <= unit:
            low = middle
        else:
            high = middle - 1
    tile = ints(plan + 8 * PLAN_COLUMNS * low, PLAN_COLUMNS)
    group = (unit - tile[UNITS_BEFORE]) // tile[NUM_CHUNKS]
    head = group * tile[HEADS]
    return tile, head, min(tile[HEADS], t.kv_heads - head), tile[UNITS_BEFORE] + group * tile[NUM_CHUNKS]
