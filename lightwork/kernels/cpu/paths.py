"""A row of a draft tree sees the keys of its path where plain decoding would have put them.

Nodes lie one behind the other, as the tree lists them. A row's ancestors are in the places of a text only if
nobody else is between them; else sums over keys would be taken in another order, and rounded otherwise. So
the pages from the last known key on are laid out anew for each row of such a tree, in two pages of the
thread's own: known keys, which are copied once, then the row's ancestors in order. Everything before is read
in place, for all rows at once.

D head size
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightwork.kernels.cpu.compiled import compiled
from lightwork.kernels.cpu.formats import F32, INT8_DOT, PAGE
from lightwork.kernels.cpu.pages import bytes_per_number, page_of, value_place
from lightwork.kernels.cpu.primitives import bits_at, copy, floats, int32s, int_at, ints, shorts, signed_bytes
from lightwork.kernels.cpu.state import CHUNK_PAGES, FIRST_ROW, PATH_PAGES, SEQ


@compiled
def lies_apart(t: Any, row: int) -> bool:
    """Whether somebody else lies between a row's ancestors."""
    mask = bits_at(t.ancestors, row)
    return bool(mask & (mask + np.uint64(1)) != 0)


@compiled
def keys_of(t: Any, row: int) -> Any:
    """How many keys a row sees, if there is no window; the last is its own."""
    mask, keys = bits_at(t.ancestors, row), int_at(t.known, int_at(t.seqs, row))
    if mask == 0:
        return int_at(t.index, row) + 1
    while mask != 0:
        mask &= mask - np.uint64(1)
        keys += 1
    return keys


@compiled
def forget_paths(t: Any) -> None:
    """What threads have of known keys is of an earlier step."""
    ints(t.path_begun, t.threads * t.kv_heads)[:] = 0


@compiled
def path_table(t: Any, thread: int, tile: Any, first_page: int, table: Any) -> Any:
    """A chunk's table with -1 and -2 for the pages that are laid out for each row. table: as the sequence has
    them, from first_page on."""
    ours = int32s(t.path_tables + 4 * thread * CHUNK_PAGES, table.shape[0])
    for p in range(table.shape[0]):
        own = first_page + p - int_at(t.known, tile[SEQ]) // PAGE
        ours[p] = table[p] if own < 0 else -1 - own
    return ours


@compiled
def lay_keys(t: Any, piece: Any, r: int, page: int, head: int) -> tuple[Any, Any]:
    """Lay out page -1 or -2 of a head's keys for row r of a piece; the addresses of them and their scales."""
    _lay(t, piece, r, -1 - page, head, False)
    key_bytes = t.head_size * PAGE * bytes_per_number(t)
    scales = _own(t, piece.thread, -1 - page, head, t.path_key_scales, 4 * PAGE)
    return _own(t, piece.thread, -1 - page, head, t.path_keys, key_bytes), scales


@compiled
def lay_values(t: Any, piece: Any, r: int, page: int, head: int) -> tuple[Any, Any]:
    """The same of its values."""
    _lay(t, piece, r, -1 - page, head, True)
    value_bytes = t.padded_head * PAGE * bytes_per_number(t)
    scales = _own(t, piece.thread, -1 - page, head, t.path_value_scales, 4 * PAGE)
    return _own(t, piece.thread, -1 - page, head, t.path_values, value_bytes), scales


@compiled
def _own(t: Any, thread: int, page: int, head: int, pages: int, size: int) -> Any:
    """The address of a head's `size` bytes of a page of a thread's own."""
    return pages + ((thread * PATH_PAGES + page) * t.kv_heads + head) * size


@compiled
def _lay(t: Any, piece: Any, r: int, page: int, head: int, values: bool) -> None:
    seq, row = piece.tile[SEQ], int_at(t.row_order, piece.tile[FIRST_ROW] + r)
    known, mask = int_at(t.known, seq), bits_at(t.ancestors, row)
    table = int32s(t.tables + 4 * seq * t.table_width, t.table_width)
    begun = ints(t.path_begun + 8 * piece.thread * t.kv_heads, t.kv_heads)
    mark = 1 + piece.layer * t.rows + seq
    if begun[head] != mark and known % PAGE > 0:
        _copy_known(t, piece.thread, piece.layer, head, table[known // PAGE])
    begun[head] = mark
    slot, at = known, known % PAGE
    while mask != 0:
        if mask & np.uint64(1) != 0:
            if at // PAGE == page:
                place = page_of(t, piece.layer, table[slot // PAGE], head)
                if values:
                    _copy_value(t, piece.thread, page, head, place, slot % PAGE, at % PAGE)
                else:
                    _copy_key(t, piece.thread, page, head, place, slot % PAGE, at % PAGE)
            at += 1
        mask >>= np.uint64(1)
        slot += 1


@compiled
def _copy_known(t: Any, thread: int, layer: int, head: int, page: int) -> None:
    """A page of the pool to the first of the thread's."""
    place, size = page_of(t, layer, page, head), bytes_per_number(t)
    key_bytes, value_bytes = t.head_size * PAGE * size, t.padded_head * PAGE * size
    keys = _own(t, thread, 0, head, t.path_keys, key_bytes)
    values = _own(t, thread, 0, head, t.path_values, value_bytes)
    copy(int32s(t.keys + place * key_bytes, key_bytes // 4), int32s(keys, key_bytes // 4))
    copy(int32s(t.values + place * value_bytes, value_bytes // 4), int32s(values, value_bytes // 4))
    if t.kv_format == INT8_DOT:
        key_scales = _own(t, thread, 0, head, t.path_key_scales, 4 * PAGE)
        value_scales = _own(t, thread, 0, head, t.path_value_scales, 4 * PAGE)
        copy(floats(t.key_scales + 4 * place * PAGE, PAGE), floats(key_scales, PAGE))
        copy(floats(t.value_scales + 4 * place * PAGE, PAGE), floats(value_scales, PAGE))


@compiled
def _copy_key(t: Any, thread: int, page: int, head: int, place: int, k: int, to: int) -> None:
    """Token k of the pool's page of a head at `place`, to place `to` of the thread's page."""
    key_bytes = t.head_size * PAGE * bytes_per_number(t)
    source, out = t.keys + place * key_bytes, _own(t, thread, page, head, t.path_keys, key_bytes)
    if t.kv_format == INT8_DOT:
        _copy_column(shorts(source, key_bytes // 2), k, shorts(out, key_bytes // 2), to)
        scales = _own(t, thread, page, head, t.path_key_scales, 4 * PAGE)
        floats(scales, PAGE)[to] = floats(t.key_scales + 4 * place * PAGE, PAGE)[k]
    else:  # float32, or pairs of bfloat16
        _copy_column(int32s(source, key_bytes // 4), k, int32s(out, key_bytes // 4), to)


@compiled
def _copy_value(t: Any, thread: int, page: int, head: int, place: int, k: int, to: int) -> None:
    """The same of its value."""
    numbers = t.padded_head * PAGE
    value_bytes = numbers * bytes_per_number(t)
    source, out = t.values + place * value_bytes, _own(t, thread, page, head, t.path_values, value_bytes)
    if t.kv_format == INT8_DOT:
        _copy_row(signed_bytes(source, numbers), k, signed_bytes(out, numbers), to, True)
        scales = _own(t, thread, page, head, t.path_value_scales, 4 * PAGE)
        floats(scales, PAGE)[to] = floats(t.value_scales + 4 * place * PAGE, PAGE)[k]
    elif t.kv_format == F32:
        _copy_row(int32s(source, numbers), k, int32s(out, numbers), to, False)
    else:
        _copy_row(shorts(source, numbers), k, shorts(out, numbers), to, True)


@compiled
def _copy_column(keys: Any, k: int, out: Any, to: int) -> None:
    for d in range(keys.shape[0] // PAGE):
        out[d * PAGE + to] = keys[d * PAGE + k]


@compiled
def _copy_row(values: Any, k: int, out: Any, to: int, pairs: bool) -> None:
    """A token's value, in the order of pages.py."""
    width, step, d = values.shape[0] // PAGE, 2 if pairs else 1, 0
    while d < width:
        wide = 64 if width - d >= 64 else 16
        source, target = value_place(d, k, width, pairs), value_place(d, to, width, pairs)
        for j in range(wide):
            out[target + step * j] = values[source + step * j]
        d += wide
