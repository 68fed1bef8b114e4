"""Paged attention against a loop over rows and keys that follows the definition in `Rows`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightwork.kernels.attention import paged_attention, plan_groups
from lightwork.kernels.rows import Rows

BLOCK = 4


def make_rows(shapes: list[tuple[int, int, list[int]]], seed: int) -> Rows:
    """Sequences of (start, count, parents of draft nodes), their blocks scattered over the pool."""
    rng = np.random.default_rng(seed)
    blocks = rng.permutation(64)
    tables = np.full((len(shapes), 16), -1, dtype=np.int32)
    columns: list[tuple[int, int, int, int]] = []
    for s, (start, count, parents) in enumerate(shapes):
        used = -(-(start + count + len(parents)) // BLOCK)
        tables[s, :used], blocks = blocks[:used], blocks[used:]
        known = start + count
        columns += [(s, i, i, 0) for i in range(start, known)]
        masks: list[int] = []
        depths: list[int] = []
        for node, parent in enumerate(parents):
            masks.append(1 << node | (masks[parent] if parent >= 0 else 0))
            depths.append(1 + depths[parent] if parent >= 0 else 0)
            columns.append((s, known + node, known + depths[-1], masks[-1]))
    seqs, index, positions, ancestors = (np.array(c, dtype=np.int64) for c in zip(*columns, strict=True))
    return Rows(
        tokens=np.zeros_like(index),
        positions=positions,
        slots=tables[seqs, index // BLOCK].astype(np.int64) * BLOCK + index % BLOCK,
        seqs=seqs.astype(np.int32),
        index=index,
        ancestors=ancestors.astype(np.uint64),
        known=np.array([start + count for start, count, _ in shapes]),
        tables=tables,
        scored=np.zeros(0, dtype=np.int64),
    )


def by_definition(
    rows: Rows, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None
) -> torch.Tensor:
    out, share = torch.empty_like(q), q.shape[1] // keys.shape[1]
    for r, s in enumerate(rows.seqs):
        place: dict[int, int] = {}
        for other in np.flatnonzero(rows.seqs == s):
            place[int(rows.index[other])] = int(rows.positions[other])
        known = int(rows.known[s])
        seen = [j for j in range(known) if j <= rows.index[r]]
        seen += [known + b for b in range(64) if int(rows.ancestors[r]) >> b & 1]
        if window is not None:
            seen = [j for j in seen if rows.positions[r] - place.get(j, j) < window]
        slots = [int(rows.tables[s, j // BLOCK]) * BLOCK + j % BLOCK for j in seen]
        for h in range(q.shape[1]):
            scores = keys[slots, h // share] @ q[r, h] / q.shape[2] ** 0.5
            out[r, h] = scores.softmax(0) @ values[slots, h // share]
    return out


TREE = [-1, -1, 0, 2, 1]
STEPS = {
    "decodes": [(7, 1, []), (30, 1, []), (0, 1, []), (29, 1, [])],
    "chunks": [(0, 9, []), (5, 9, []), (20, 1, []), (11, 30, [])],
    "trees": [(12, 1, TREE), (0, 6, [-1, 0]), (33, 1, TREE), (3, 1, [])],
}


@pytest.mark.parametrize("window", [None, 5, 100])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("step", STEPS)
def test_paged_attention_follows_its_definition(
    step: str, heads: tuple[int, int], window: int | None
) -> None:
    rows = make_rows(STEPS[step], seed=1)
    torch.manual_seed(0)
    q = torch.randn(len(rows.tokens), heads[0], 8)
    keys, values = torch.randn(2, 64 * BLOCK, heads[1], 8)
    groups = plan_groups(rows, BLOCK, "cpu", windows=window is not None)
    got = paged_attention(q, keys, values, groups, window)
    torch.testing.assert_close(got, by_definition(rows, q, keys, values, window), atol=1e-5, rtol=0)
