"""Ternary sparse coding: a unit is absent, or adds or subtracts its component.

    p(s_h = 1) = p(s_h = -1) = pi / 2      p(y | s) = N(y; sum_h s_h W_h, sigma² I)

Candidates are the units whose better sign alone explains the row best. The rate is learnt as in BSC.

Both signs are alike, so no components at all is a solution. Near it an iteration multiplies components by
C / (T sigma²), C the rows' covariance: only directions in which the rows vary by more than T sigma² grow, and
where that is the first alone, all units follow it and stay there. So T begins at 2, not at 5 as elsewhere: of
5 x 5 bars, C / sigma² has 4.7 for the mean of all bars, and 2.0 to 2.8 for what tells one from another.

Source: Exarchakis, Henniges, Eggert and Lücke, "Ternary Sparse Coding" (LVA/ICA 2012); the schedule is that
of ProSper's own bars.
"""

from __future__ import annotations

from lightwork.learn.sparse.linear import Linear


class TSC(Linear):
    """See SparseCoder. prior_: [2], of -1 and of 1."""

    annealing = ((0.0, 2.0), (0.7, 1.0))

    def _values(self) -> tuple[float, ...]:
        return (-1.0, 1.0)
