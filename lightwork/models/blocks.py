"""Blocks of weights, read from their file into slots of memory, and how the step finds them there."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import CheckpointError
from lightwork.kernels.cpu.state import OFFSET, State
from lightwork.models.packed import Block, Layout, room

PAGE = 4096
"""Direct reads begin and end with a page, in the file and in memory."""


def pages(begin: int, end: int) -> tuple[int, int]:
    """The whole pages that bytes [begin, end) lie in."""
    return begin // PAGE * PAGE, -(-end // PAGE) * PAGE


class BlockFile:
    """Weights on a disk. What is read goes past the system's cache where the file system can do so,
    else it is dropped from there at once: no second copy of the weights stays in memory.

    read_bytes: so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read_bytes = 0
        self.direct = hasattr(os, "O_DIRECT")
        try:
            self._file = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
        except OSError:
            self.direct = False
            self._file = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._file).st_size
        weakref.finalize(self, os.close, self._file)

    def read(self, begin: int, end: int, into: NDArray[np.uint8]) -> None:
        """Whole pages [begin, end), as far as there are any, to memory that begins with a page.

        Raises CheckpointError if they cannot be read.
        """
        at, view = begin, into.data
        while at < min(end, self.size):
            try:
                count = os.preadv(self._file, [view[at - begin : end - begin]], at)
            except OSError as error:
                raise self._lost(error.strerror) from error
            if count == 0:
                raise self._lost("it has become shorter")
            at += count
        self.read_bytes += at - begin
        if not self.direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, begin, end - begin, os.POSIX_FADV_DONTNEED)

    def _lost(self, why: str | None) -> CheckpointError:
        return CheckpointError(
            f"weights cannot be read from {self.path}: {why}",
            expected="the file that was made when the model was opened",
            fix="start again",
        )


class Slots:
    """Memory for units of neighbouring blocks, and the tables by which a step finds their weights.

    arena [slots, bytes]: all the weights that there are.
    """

    def __init__(self, layout: Layout, num_slots: int, slot_bytes: int) -> None:
        self.arena = room(num_slots * slot_bytes).reshape(num_slots, slot_bytes)
        self._layout = layout
        self._layers = layout.layers.copy()
        self._matrices = np.array(layout.matrices, np.int64)
        self._state: State | None = None

    def bind(self, state: State) -> None:
        """Let a model's steps look here."""
        self._state = state
        arena = self.arena.reshape(-1)
        state.set(weights=arena, vectors=arena, layers=self._layers, matrices=self._matrices)

    def point(self, blocks: Iterable[Block], shift: int) -> None:
        """These lie so many bytes further on in the arena than in the file."""
        layout = self._layout
        for block in blocks:
            for matrix in block.matrices:
                self._matrices[matrix, OFFSET] = layout.matrices[matrix][OFFSET] + shift
            for column in block.columns:
                self._layers[block.layer, column] = layout.layers[block.layer, column] + shift // 4
            if block is layout.blocks[-1]:
                self._point_last(shift // 4)

    def _point_last(self, shift: int) -> None:
        """The norm before the head. shift: in floats."""
        assert self._state is not None, "only a model that is bound computes"
        self._state.set(norm=self._layout.norm + shift)
        if self._layout.norm_bias >= 0:
            self._state.set(norm_bias=self._layout.norm_bias + shift)


class TableRows:
    """Rows of tables in a file, each read by itself."""

    def __init__(self, file: BlockFile) -> None:
        self._file = file
        self._page = room(PAGE)

    def read(
        self, table: int, row_bytes: int, numbers: NDArray[Any]
    ) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Rows of the table that begins with byte `table`, and which of them each number asks for."""
        wanted, asked = np.unique(numbers, return_inverse=True)
        found = np.empty((len(wanted), row_bytes), np.uint8)
        for row, number in zip(found, wanted.tolist(), strict=True):
            begin, end = pages(table + number * row_bytes, table + (number + 1) * row_bytes)
            if len(self._page) < end - begin:
                self._page = room(end - begin)
            self._file.read(begin, end, self._page)
            skipped = table + number * row_bytes - begin
            row[:] = self._page[skipped : skipped + row_bytes]
        return found, asked


class EmbeddingRows:
    """The rows of the embedding, and of learned positions, that a step's tokens have: they are read alone."""

    def __init__(self, layout: Layout, file: BlockFile) -> None:
        self._layout = layout
        self._rows = TableRows(file)

    def gather(self, state: State) -> None:
        """Read those of the rows that a state is filled with; tokens, but for probes, and positions become
        their numbers.

        Windows compare positions, and no family has both them and learned positions.
        """
        layout, rows = self._layout, int(state.record["rows"][0])
        tokens, d = state.arrays["tokens"][:rows], layout.spec.hidden_size
        known = tokens >= 0
        embed, tokens[known] = self._rows.read(layout.embed, layout.embed_bytes * d, tokens[known])
        state.set(embed=embed)
        if layout.positions >= 0:
            places = state.arrays["row_positions"][:rows]
            positions, places[:] = self._rows.read(4 * layout.positions, 4 * d, places)
            state.set(positions=positions)
