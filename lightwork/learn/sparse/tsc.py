"""Ternary sparse coding: a unit is absent, or adds or subtracts its component.

    p(s_h = 1) = p(s_h = -1) = pi / 2      p(y | s) = N(y; sum_h s_h W_h, sigma² I)

Candidates are the units whose better sign alone explains the row best. The rate is learnt as in BSC.

Source: Exarchakis, Henniges, Eggert and Lücke, "Ternary Sparse Coding" (LVA/ICA 2012).
"""

from __future__ import annotations

from lightwork.learn.sparse.linear import Linear


class TSC(Linear):
    """See SparseCoder. prior_: [2], of -1 and of 1."""

    def _values(self) -> tuple[float, ...]:
        return (-1.0, 1.0)
