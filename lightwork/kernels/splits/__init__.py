"""The kind of technique that decides who computes which tiles of a decode step's attention.

The tiles of all sequences and KV heads stand in one row, by sequence, then head, then key: a `Grid`. A
split cuts that row into runs of neighbouring tiles. Workers (threads, or a GPU's multiprocessors) take runs
in order, each the next one when it is free; a worker's partial results (maximum, sum, output) of a head
that several runs share are folded afterwards.

Tiles begin at multiples of the tile size from each sequence's start, whatever the split and whoever else is
in the batch. A kernel that keeps one partial per tile and folds them in order of the keys therefore returns
the same bits for every split, every number of workers and every batch; only the time differs
(`kernels/makespan.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightwork.errors import RangeError

MAX_WORKERS = 1 << 20
MAX_TILES = 1 << 40
"""Times the number of workers this still counts exactly in 64 bits."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Grid:
    """The tiles of one step and who may compute them.

    keys: int64[S], keys of each sequence, 0 allowed. heads: KV heads; the query heads and draft rows of one
    are rows of the same tile. tile: keys in a tile. workers: how many compute at the same time.
    Raises RangeError.
    """

    keys: NDArray[np.int64]
    heads: int
    tile: int
    workers: int

    @classmethod
    def of(cls, keys: ArrayLike, *, heads: int, tile: int, workers: int) -> Grid:
        """From anything that is a list of whole numbers."""
        return cls(keys=np.asarray(keys), heads=heads, tile=tile, workers=workers)

    def __post_init__(self) -> None:
        given = np.asarray(self.keys)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise RangeError(
                f"keys are {given.dtype} of shape {given.shape}",
                expected="one whole number of keys per sequence",
                fix="keys=[17, 300]",
            )
        if given.size and int(given.min()) < 0:
            raise RangeError(f"a sequence has {given.min()} keys", expected="at least 0")
        for name, value in (("heads", self.heads), ("tile", self.tile), ("workers", self.workers)):
            if value < 1:
                raise RangeError(f"{name} is {value}", expected="at least 1", fix=f"{name}=1")
        most = int(given.max()) if given.size else 0
        tiles = -(-most // self.tile) * given.size * self.heads
        if tiles > MAX_TILES or self.workers > MAX_WORKERS:
            raise RangeError(
                f"{given.size} sequences of up to {most} keys are {tiles} tiles for {self.workers} workers",
                expected=f"at most {MAX_TILES} tiles, {MAX_WORKERS} workers",
            )
        object.__setattr__(self, "keys", given.astype(np.int64))

    @property
    def tiles(self) -> NDArray[np.int64]:
        """Tiles of each head, sequence by sequence: int64[S * heads]."""
        return np.repeat(-(-self.keys // self.tile), self.heads)

    @property
    def first(self) -> NDArray[np.int64]:
        """Where each head begins in the row of tiles, and where the last one ends: int64[S * heads + 1]."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.tiles)])

    @property
    def total(self) -> int:
        return int(self.tiles.sum())


Runs = NDArray[np.int64]
"""int64[R, 2]: (first tile, last tile + 1) of each run, in order, every tile in exactly one, none empty."""


class Split(Protocol):
    """Who computes which tiles: pure, the same runs for the same grid."""

    def runs(self, grid: Grid) -> Runs: ...
