"""Discrete sparse coding: units take any of a few values, each with a probability of its own.

    p(s_h = v_k) = pi_k      p(y | s) = N(y; sum_h s_h W_h, sigma² I)

Candidates are the units whose best value alone explains the row best. pi_k is the expected share of units
with that value.

Source: Exarchakis and Lücke, "Discrete Sparse Coding" (Neural Computation 29, 2017), equations 16 to 22.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightwork.errors import RangeError
from lightwork.learn.schedules import Schedule
from lightwork.learn.shards import Sums
from lightwork.learn.sparse.linear import Linear
from lightwork.learn.sparse.truncated_em import LEAST, Floats, Knobs, Params
from lightwork.runtime.progress import Progress


class DSC(Linear):
    """See SparseCoder. values: of a unit; 0 is among them. prior_: [V], of each but 0, in their order."""

    def __init__(
        self,
        n_components: int = 8,
        *,
        values: Sequence[float] = (0.0, 1.0, 2.0),
        n_candidates: int | None = None,
        n_active: int | None = None,
        max_iter: int = 50,
        temperature: Schedule | None = None,
        cut: Schedule = ((0.0, 0.0), (0.66, 1.0)),
        partial: Schedule = 1.0,
        jitter: Mapping[str, Schedule] | None = None,
        n_jobs: int = 1,
        random_state: Any = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(
            n_components, n_candidates=n_candidates, n_active=n_active, max_iter=max_iter,
            temperature=temperature, cut=cut, partial=partial, jitter=jitter, n_jobs=n_jobs,
            random_state=random_state, progress=progress,
        )  # fmt: skip
        self.values = values

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
