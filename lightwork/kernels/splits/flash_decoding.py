"""FlashDecoding: every head is cut into the same number of parts.

Paper:  "Flash-Decoding for long-context inference", 2023 (a published program, part of flash-attention)
Idea:   also divide the keys of a head, into a fixed number of parts that fills the workers, then fold them
Shapes: Grid of S sequences x G heads -> at most S * G * splits runs, none of two heads
Cost:   O(runs); the last wave of runs is rarely full, and a short sequence gets as many parts as a long one
Claims: lean_attention
Differs: parts are counted in our tiles, whose size the grid gives; the program takes 256, 128 or 64 keys by
        the size of a head
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from lightwork.errors import RangeError
from lightwork.kernels.splits import Grid, Runs

MAX_SPLITS = 128
FULL = 0.8
"""Heads for this share of the workers are left whole."""
GOOD = 0.85
"""The fewest parts that use the workers this well, compared with the best number of parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashDecoding:
    """splits: parts of each head; 0 chooses as the published program does."""

    splits: int = 0

    def __post_init__(self) -> None:
        if self.splits < 0:
            raise RangeError(
                f"FlashDecoding cannot cut heads into {self.splits} parts",
                expected="splits >= 1, or 0 to choose",
                fix="FlashDecoding()",
            )

    def runs(self, grid: Grid) -> Runs:
        tiles = grid.tiles
        splits = self.splits or choose_splits(len(tiles), int(tiles.max(initial=0)), grid.workers)
        size = np.maximum(1, -(-tiles // splits))
        parts = -(-tiles // size)
        head = np.repeat(np.arange(len(tiles)), parts)
        first_part = np.cumsum(parts) - parts
        start = grid.first[head] + (np.arange(len(head)) - first_part[head]) * size[head]
        return np.stack([start, np.minimum(start + size[head], grid.first[head + 1])], axis=1)


def choose_splits(heads: int, tiles: int, workers: int) -> int:
    """Parts for `heads` heads of at most `tiles` tiles: the fewest that fill waves of workers nearly best."""
    if heads >= FULL * workers or tiles <= 1:
        return 1
    filled: dict[int, float] = {}
    for splits in range(1, min(MAX_SPLITS, workers, tiles) + 1):
        if splits == 1 or -(-tiles // splits) != -(-tiles // (splits - 1)):
            waves = heads * splits / workers
            filled[splits] = waves / ceil(waves) if waves else 1.0
    best = max(filled.values())
    return next(splits for splits, share in filled.items() if share >= GOOD * best)
