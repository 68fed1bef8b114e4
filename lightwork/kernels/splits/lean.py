"""Lean Attention: every worker gets equally many tiles, wherever heads begin and end.

Paper:  "Lean Attention: Hardware-Aware Scalable Attention Mechanism for the Decode-Phase of Transformers",
        2024; the division is that of "Stream-K: Work-Centric Parallel Decomposition for Dense
        Matrix-Matrix Multiplication on the GPU", 2023
Idea:   the softmax merge is associative, so a head may be cut anywhere: cut the row of all tiles into one
        run per worker
Shapes: Grid of T tiles for W workers -> min(T, W) runs of floor(T / W) or ceil(T / W) tiles
Cost:   O(W); all workers end together, at most one tile apart; a run touches one head or several
Claims: lean_attention
Differs: the paper's first worker of a head merges what the others hand it as they finish; here the parts
        of a head are folded afterwards in order of its keys, so that results do not depend on the split
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightwork.kernels.splits import Grid, Runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Lean:
    """Max over mean tiles per worker is at most 1 + W / T."""

    def runs(self, grid: Grid) -> Runs:
        edges = np.arange(grid.workers + 1) * grid.total // grid.workers
        return np.stack([edges[:-1], edges[1:]], axis=1)[np.diff(edges) > 0]
