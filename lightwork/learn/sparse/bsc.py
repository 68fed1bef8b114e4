"""Binary sparse coding: units are on or off, and what is on adds up.

    p(s_h = 1) = pi      p(y | s) = N(y; sum_h s_h W_h, sigma² I)

Candidates are the units whose components have the largest cosine with the row. The rate is learnt as
pi <- pi (A / B) <number of active units>, with A the prior's mass and B its mean on states of at most gamma.

Source: Henniges, Puertas, Bornschein, Eggert and Lücke, "Binary Sparse Coding" (LVA/ICA 2010).
"""

from __future__ import annotations

import numpy as np

from lightwork.learn.sparse.linear import Linear
from lightwork.learn.sparse.truncated_em import Floats, Knobs, Params


class BSC(Linear):
    """See SparseCoder. prior_: [1], pi."""

    def _select(self, inner_NH: Floats, params: Params, gains_HV: Floats, knobs: Knobs) -> Floats:
        length = np.linalg.norm(params["W"], axis=1)
        result: Floats = inner_NH / np.where(length > 0, length, 1.0)
        return result
