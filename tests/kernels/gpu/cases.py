"""Steps of sequences with scattered blocks, and what attention gives for them on a device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightwork.kernels.attention import paged_attention, plan_groups
from lightwork.kernels.gpu.attention import lean_attention, place_plan
from lightwork.kernels.gpu.mirror import Mirror
from lightwork.kernels.gpu.tasks import Tile, check_blocks, plan_tasks
from lightwork.kernels.rows import Rows

BLOCK = 16
NUM_BLOCKS = 96
TREE = (-1, -1, 0, 2, 1)
SMALL_TILES = (Tile(16, 128), Tile(32, 128), Tile(64, 256))
"""Chunks short enough that sequences of a few hundred keys have several."""

STEPS: dict[str, list[tuple[int, int, tuple[int, ...]]]] = {
    "decodes": [(0, 1, ()), (16, 1, ()), (129, 1, ()), (299, 1, ())],
    "chunks": [(0, 17, ()), (127, 3, ()), (294, 6, ())],
    "trees": [(11, 1, TREE), (0, 1, ()), (294, 1, TREE), (128, 1, (-1,))],
}
"""Per sequence: keys before the step, known rows in it, parents of draft nodes."""


def make_rows(shapes: Sequence[tuple[int, int, Sequence[int]]], blocks: Sequence[int]) -> Rows:
    """Rows of sequences that take their blocks from the list, in order."""
    left = list(blocks)
    most = max(start + count + len(parents) for start, count, parents in shapes)
    tables = np.full((len(shapes), -(-most // BLOCK) + 1), -1, np.int32)
    columns: list[tuple[int, int, int, int]] = []
    for s, (start, count, parents) in enumerate(shapes):
        known = start + count
        used = -(-(known + len(parents)) // BLOCK)
        tables[s, :used], left = left[:used], left[used:]
        columns += [(s, i, i, 0) for i in range(start, known)]
        masks: list[int] = []
        depths: list[int] = []
        for node, parent in enumerate(parents):
            masks.append(1 << node | (masks[parent] if parent >= 0 else 0))
            depths.append(1 + depths[parent] if parent >= 0 else 0)
            columns.append((s, known + node, known + depths[-1], masks[-1]))
    seqs, index, positions, ancestors = (np.array(c, np.int64) for c in zip(*columns, strict=True))
    return Rows(
        tokens=np.zeros_like(index),
        positions=positions,
        slots=tables[seqs, index // BLOCK].astype(np.int64) * BLOCK + index % BLOCK,
        seqs=seqs.astype(np.int32),
        index=index,
        ancestors=ancestors.astype(np.uint64),
        known=np.array([start + count for start, count, _ in shapes]),
        tables=tables,
        scored=np.zeros(0, np.int64),
    )


def scattered(seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).permutation(NUM_BLOCKS).tolist()


def random_qkv(
    num_rows: int, heads: tuple[int, int], size: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of rows, keys and values of the whole pool."""
    generator = torch.Generator().manual_seed(3)
    made = [
        torch.randn((n, h, size), generator=generator).to(device=device, dtype=dtype)
        for n, h in ((num_rows, heads[0]), (NUM_BLOCKS * BLOCK, heads[1]), (NUM_BLOCKS * BLOCK, heads[1]))
    ]
    return made[0], made[1], made[2]


def lean(
    rows: Rows,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    window: int | None = None,
    units: int = 3,
    tiles: Sequence[Tile] = SMALL_TILES,
    padding: int = 0,
) -> Tensor:
    check_blocks(rows, NUM_BLOCKS, BLOCK)
    plan = plan_tasks(rows, keys.shape[1], q.shape[1] // keys.shape[1], window, tiles)
    placed = place_plan(Mirror(q.device), "all", plan, rows, q.shape[2], padding)
    return lean_attention(q, keys, values, placed, block_size=BLOCK, window=window, units=units)


def reference(rows: Rows, q: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    groups = plan_groups(rows, BLOCK, q.device, windows=window is not None)
    return paged_attention(q.float(), keys.float(), values.float(), groups, window)
