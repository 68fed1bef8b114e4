"""The rows of one process or rank: what is summed over them in an iteration.

Rows are seen in blocks, so that what an E-step holds beside them is BLOCK x H. For the cut it keeps eight
bytes of each row: its evidence, as a number whose histogram finds the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import comb
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightwork.learn.shards import Sums, histogram, order_bits
from lightwork.runtime.effects import Work

if TYPE_CHECKING:
    from lightwork.learn.sparse.truncated_em import Floats, Knobs, Params, SparseCoder

BLOCK = 4096
"""Rows at once."""


class Part(NamedTuple):
    """Which rows an iteration looks at: num of all, which everybody draws alike from the seed."""

    seed: tuple[int, int]
    num: int
    of: int

    def mask(self) -> NDArray[np.bool_]:
        """Of all rows."""
        return np.random.default_rng(self.seed).permutation(self.of) < self.num


class Shard:
    """Some rows, and what the last E-step said of each."""

    def __init__(self, model: SparseCoder, Y: Floats, first: int = 0) -> None:
        self._model, self._first = model, first
        self._rows = np.ascontiguousarray(Y)
        self._bits = np.zeros(len(Y), np.uint64)

    def __len__(self) -> int:
        return len(self._rows)

    def evidence(self, params: Params, knobs: Knobs, part: Part | None = None) -> Sums:
        """Find the evidence of each row of the part and keep it here."""
        self._bits[:] = 0
        for rows, Y in self._blocks(part):
            local = self._model._local(params, Y, knobs, np.zeros(len(Y), bool))
            self._bits[rows] = order_bits(local.evidence)
        return Sums({})

    def histogram(self, prefix: int, shift: int) -> Sums:
        return histogram(self._bits, prefix, shift)

    def statistics(
        self, params: Params, knobs: Knobs, threshold: np.uint64 | None, part: Part | None = None
    ) -> Sums:
        """The sums that the M-step needs, of rows of the part whose evidence is at least the threshold."""
        total = Sums({})
        for rows, Y in self._blocks(part):
            keep = np.ones(len(Y), bool) if threshold is None else self._bits[rows] >= threshold
            local = self._model._local(params, Y, knobs, keep)
            kept = Y[keep].astype(np.float64, copy=False)
            shared: dict[str, Any] = {
                "evidence": np.float64(local.evidence.sum()),
                "kept": np.float64(len(kept)),
                "square": np.float64(np.einsum("nd,nd->", kept, kept)),
            }
            total = total.merge(Sums({**shared, **local.sums}))
        return total

    def work(self, method: str, rows: int) -> tuple[Work, ...]:
        """What a method takes over so many rows: scores of all units, states, and for statistics the sums."""
        if method == "histogram":
            return (Work(kind="vector", dtype="float64", ops=3 * rows, bytes=8 * rows),)
        knobs, (units, dimensions) = self._model._knobs(1.0), (self._model.n_components, self._rows.shape[1])
        num = sum(comb(knobs.candidates, j) for j in range(2, knobs.gamma + 1))
        products = 2 * rows * units * dimensions * (1 + (method == "statistics"))
        return (
            Work(dtype="float64", ops=products, bytes=rows * self._rows.itemsize * dimensions, rows=rows),
            Work(kind="vector", dtype="float64", ops=rows * (units + 2 * num * knobs.gamma), launches=0),
        )

    def _blocks(self, part: Part | None) -> Iterator[tuple[Any, Floats]]:
        """Which rows, and they themselves; of a block without rows of the part, none."""
        mask = None if part is None else part.mask()[self._first :]
        for begin in range(0, len(self._rows), BLOCK):
            rows: Any = slice(begin, min(begin + BLOCK, len(self._rows)))
            if mask is not None:
                rows = begin + np.flatnonzero(mask[rows])
            yield rows, self._rows[rows]
