"""Maximum magnitude causes analysis: what is seen is the active unit's entry of largest magnitude.

As MCA, of any sign, with m_d = sign(t_d) |t_d|^(1/rho), t_d = sum_h s_h sign(W_hd) |W_hd|^rho, rho of at most
35 and T of at least 1.2. Components move by how much there is to learn from: with q = sum <A>,

    W <- w sum <A> y / q + (1 - w) W,     w = max(1 - exp(-q / 2.5), 0.2)

Candidates are the units whose components are nearest to the row.

Source: Bornschein, Henniges and Lücke, "Are V1 Simple Cells Optimized for Visual Occlusions?" (PLoS
Computational Biology 9, 2013).
"""

from __future__ import annotations

import numpy as np

from lightwork.learn.shards import Sums
from lightwork.learn.sparse.mca import FLOOR, MCA
from lightwork.learn.sparse.truncated_em import Floats, Knobs

STEEPEST = 35.0


class MMCA(MCA):
    """See SparseCoder. prior_: [1], pi."""

    coolest = 1.2

    def _allowed(self, W: Floats) -> Floats:
        result: Floats = np.where(np.abs(W) < FLOOR, np.where(W < 0, -FLOOR, FLOOR), W)
        return result

    def _select(self, Y: Floats, W: Floats) -> Floats:
        result: Floats = 2 * Y.astype(np.float64) @ W.T - np.square(W).sum(1)
        return result

    def _rho(self, knobs: Knobs) -> float:
        return min(super()._rho(knobs), STEEPEST)

    def _update_components(self, W: Floats, total: Sums) -> Floats:
        share = np.maximum(1 - np.exp(-total["weight"] / 2.5), 0.2)
        return self._allowed(share * super()._update_components(W, total) + (1 - share) * W)
