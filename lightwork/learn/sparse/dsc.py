"""Discrete sparse coding: units take any of a few values, each with a probability of its own.

    p(s_h = v_k) = pi_k      p(y | s) = N(y; sum_h s_h W_h, sigma² I)

Candidates are the units whose best value alone explains the row best. pi_k is the expected share of units
with that value.

Source: Exarchakis and Lücke, "Discrete Sparse Coding" (Neural Computation 29, 2017), equations 16 to 22.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightwork.errors import RangeError
from lightwork.learn.shards import Sums
from lightwork.learn.sparse.linear import Linear
from lightwork.learn.sparse.truncated_em import LEAST, Floats, Knobs, Params


@dataclass(eq=False, repr=False, kw_only=True)
class DSC(Linear):
    """See SparseCoder. values: of a unit; 0 is among them. prior_: [V], of each but 0, in their order."""

    values: Sequence[float] = (0.0, 1.0, 2.0)

    def _values(self) -> tuple[float, ...]:
        values = [float(value) for value in self.values]
        others = tuple(value for value in values if value != 0.0)
        if len(others) == len(values) or not others or len(set(values)) < len(values):
            raise RangeError(
                f"values {values}", expected="different numbers, 0 among them, and one more at least"
            )
        return others

    def _update_prior(self, params: Params, total: Sums, knobs: Knobs) -> Floats:
        share = total["counts"] / (float(total["kept"]) * self.n_components)
        absent = max(1.0 - float(share.sum()), LEAST)
        share = np.maximum(share, LEAST)
        result: Floats = share / (absent + share.sum())
        return result
