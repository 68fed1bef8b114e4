"""One worker per head, as FlashAttention-2 does when it decodes.

Paper:  "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023
Idea:   workers divide (sequence, head) pairs and rows of queries; with one row per head, a head is one run
Shapes: Grid of S sequences x G heads -> at most S * G runs, each a whole head
Cost:   O(S * G); no folding. As slow as the longest head; workers beyond S * G idle
Claims: lean_attention
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightwork.kernels.splits import Grid, Runs


@dataclass(frozen=True, slots=True, kw_only=True)
class OnePerHead:
    """Heads are never divided."""

    def runs(self, grid: Grid) -> Runs:
        first = grid.first
        return np.stack([first[:-1], first[1:]], axis=1)[grid.tiles > 0]
