"""Attention's work as a flat list of tasks of nearly equal size.

A task is one tile of rows, one key-value head and one chunk of keys. Tiles never mix sequences, and tiles
and chunks depend on nothing but their own sequence: so do its results, bit for bit, whoever else is in the
batch and however the tasks are dealt out.

R rows  S sequences  H query heads  G key-value heads  T tasks  P partial results, one per query head, row
and chunk
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import InvariantError
from lightwork.kernels.rows import Rows

Ints = NDArray[np.int32]

TASK_FIELDS = 10
"""First row, rows, key-value head, first key, end of keys, first partial, where its sequence's table starts,
known keys, and row and key index of the sequence's first row."""

FOLD_FIELDS = 3
"""Per row: its first partial, number of chunks, partials from one chunk to the next."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A shape of tasks. lanes: rows times query heads of a group, the height of a product. chunk: keys.

    per_unit: programs that fit on one multiprocessor at a time.
    """

    lanes: int
    chunk: int
    per_unit: int = 1

    def rows(self, share: int) -> int:
        """Rows of a tile when `share` query heads read one key-value head."""
        return max(1, self.lanes // share)


TILES = (Tile(16, 256, 3), Tile(64, 256, 2), Tile(128, 1024, 1))
"""Decodes, draft trees and prefills. The first two are bound by reading keys: short chunks spread them over
the device. Prefills are bound by products: long chunks keep the partials they write small against them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The tasks of one step for layers of one window.

    parts: per tile shape that occurs, tasks int32[T, TASK_FIELDS]. folds: int32[R, FOLD_FIELDS].
    num_partials: P.
    """

    parts: tuple[tuple[Tile, Ints], ...]
    folds: Ints
    num_partials: int


def check_blocks(rows: Rows, num_blocks: int, block_size: int) -> None:
    """Raises InvariantError if a row would read or write outside the pool."""
    last = np.zeros(len(rows.tables), np.int64)
    np.maximum.at(last, rows.seqs, rows.index + 1)
    used = -(-last // block_size)
    if used.max(initial=0) > rows.tables.shape[1]:
        raise InvariantError(
            f"a sequence of {last.max()} keys has a table of {rows.tables.shape[1]} blocks of {block_size}",
            expected="a block for every key",
        )
    read = np.arange(rows.tables.shape[1]) < used[:, None]
    wrong = read & ((rows.tables < 0) | (rows.tables >= num_blocks))
    if wrong.any():
        s, n = np.argwhere(wrong)[0]
        raise InvariantError(
            f"block {n} of sequence {s} is {rows.tables[s, n]}", expected=f"0 to {num_blocks - 1}"
        )
    if rows.slots.min(initial=0) < 0 or rows.slots.max(initial=0) >= num_blocks * block_size:
        raise InvariantError(
            f"a row is written to slot {rows.slots.min()} or {rows.slots.max()}",
            expected=f"0 to {num_blocks * block_size - 1}",
        )


def plan_tasks(
    rows: Rows,
    kv_heads: int,
    share: int,
    window: int | None,
    tiles: Sequence[Tile] = TILES,
) -> Plan:
    """Cut a step's attention into tasks; share: query heads per key-value head.

    A sequence gets the first of the tiles that holds its rows, or else the last. Raises InvariantError if
    the rows of a sequence are not consecutive keys.
    """
    first = np.flatnonzero(np.diff(rows.seqs, prepend=-1))
    counts = np.diff(np.append(first, len(rows.seqs)))
    if (np.diff(rows.index)[np.diff(rows.seqs) == 0] != 1).any():
        raise InvariantError("rows of one sequence skip keys", expected="consecutive keys")
    folds = np.zeros((len(rows.seqs), FOLD_FIELDS), np.int32)
    parts: list[tuple[Tile, Ints]] = []
    num_partials = 0
    kinds = np.searchsorted([tile.rows(share) for tile in tiles[:-1]], counts)
    for i, tile in enumerate(tiles):
        picked = kinds == i
        if picked.any():
            tasks, num_partials = _part(
                rows, first[picked], counts[picked], tile, (kv_heads, share, window), folds, num_partials
            )
            parts.append((tile, tasks))
    return Plan(tuple(parts), folds, num_partials)


def _part(
    rows: Rows,
    first: NDArray[np.int64],
    counts: NDArray[np.int64],
    tile: Tile,
    heads: tuple[int, int, int | None],
    folds: Ints,
    num_partials: int,
) -> tuple[Ints, int]:
    """Tasks of the sequences whose rows start at `first`; fills in their rows' folds."""
    kv_heads, share, window = heads
    tile_rows = tile.rows(share)
    tiles_per_seq = -(-counts // tile_rows)
    head, at = _within(tiles_per_seq)
    row = first[head] + at * tile_rows
    num_rows = np.minimum(tile_rows, counts[head] - at * tile_rows)
    seqs = rows.seqs[row]
    known = rows.known[seqs]
    end = rows.index[row + num_rows - 1] + 1
    begin = np.zeros_like(end)
    if window is not None:
        # No draft node stands at a position before the first of its tree, `known`.
        seen = np.minimum(rows.index[row], known) - window + 1
        begin = np.maximum(seen, 0) // tile.chunk * tile.chunk
    chunks = np.maximum(-(-(end - begin) // tile.chunk), 0)
    lanes = num_rows * share
    sizes = chunks * kv_heads * lanes
    base = num_partials + np.cumsum(sizes) - sizes

    of, r = _within(num_rows)
    folds[row[of] + r] = np.stack((base[of] + r * share, chunks[of], lanes[of]), axis=1)

    of, n = _within(chunks * kv_heads)
    key = begin[of] + n % np.maximum(chunks[of], 1) * tile.chunk
    tasks = np.stack(
        (
            row[of],
            num_rows[of],
            n // np.maximum(chunks[of], 1),
            key,
            np.minimum(key + tile.chunk, end[of]),
            base[of] + n * lanes[of],
            seqs[of].astype(np.int64) * rows.tables.shape[1],
            known[of],
            first[head][of],
            rows.index[first[head]][of],
        ),
        axis=1,
    )
    return tasks.astype(np.int32), num_partials + int(sizes.sum())


def _within(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For [2, 3]: the owners [0, 0, 1, 1, 1] and the places within them [0, 1, 0, 1, 2]."""
    owner = np.repeat(np.arange(len(counts)), counts)
    starts = np.cumsum(counts) - counts
    return owner, np.arange(len(owner)) - starts[owner]
