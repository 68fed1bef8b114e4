"""The rows of one process or rank: what is summed over them in an iteration.

Rows are seen in blocks, so that what an E-step holds beside them is BLOCK x H. For the cut it keeps eight
bytes of each row: its evidence, as a number whose histogram finds the threshold.
"""

from __future__ import annotations

from math import comb
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import InvariantError
from lightwork.learn.shards import Sums, histogram, order_bits
from lightwork.runtime.effects import Work

if TYPE_CHECKING:
    from lightwork.learn.sparse.truncated_em import Floats, Knobs, Params, SparseCoder

BLOCK = 4096
"""Rows at once."""
LEFT_OUT = 16
"""A cut is taken to leave out one row in so many, where it is not known."""
MOST_TAKEN = 1e6
"""Off a sum, in terms of what is left: ten digits remain."""


class Part(NamedTuple):
    """Which rows an iteration looks at: num of all, which everybody draws alike from the seed."""

    seed: tuple[int, int]
    num: int
    of: int

    def mask(self) -> NDArray[np.bool_]:
        """Of all rows."""
        return np.random.default_rng(self.seed).permutation(self.of) < self.num


class Shard:
    """Some rows, and what the last E-step said of each.

    Which rows a cut keeps is known when the evidence of all shards is. Most rows are kept: `evidence` sums
    over all in the same pass, and `cut` takes off the others' sums.
    """

    continues = ("histogram", "cut")

    def __init__(self, model: SparseCoder, Y: Floats, first: int = 0) -> None:
        self._model, self._first = model, first
        self._rows = np.ascontiguousarray(Y)
        self._last: _Pass | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def statistics(self, params: Params, knobs: Knobs, part: Part | None = None) -> Sums:
        """The sums that the M-step needs, of all rows, or those of a part."""
        found = self._pass(params, knobs, self._mask(part))
        return found.told(found.sums)

    def evidence(self, params: Params, knobs: Knobs, part: Part | None = None) -> Sums:
        """Find each row's evidence and keep it here, for a cut."""
        self._last = self._pass(params, knobs, self._mask(part))
        return Sums({})

    def histogram(self, prefix: int, shift: int) -> Sums:
        return histogram(self._found().bits, prefix, shift)

    def cut(self, threshold: np.uint64) -> Sums:
        """As statistics, of rows whose evidence was at least the threshold."""
        found = self._found()
        keep = found.among & (found.bits >= threshold)
        left_out = found.among & ~keep
        if np.count_nonzero(keep) > np.count_nonzero(left_out):
            left = less(found.sums, self._pass(found.params, found.knobs, left_out).sums)
            if left is not None:
                return found.told(left)
        return found.told(self._pass(found.params, found.knobs, keep).sums)

    def _mask(self, part: Part | None) -> NDArray[np.bool_]:
        num = len(self._rows)
        return np.ones(num, bool) if part is None else part.mask()[self._first : self._first + num]

    def _found(self) -> _Pass:
        if self._last is None:
            raise InvariantError("a cut of rows whose evidence is not known", expected="evidence before it")
        return self._last

    def _pass(self, params: Params, knobs: Knobs, among: NDArray[np.bool_]) -> _Pass:
        """Over some rows; the others have the least evidence. Sums of none are zeros."""
        total, evidence = Sums({}), np.full(len(self._rows), -np.inf)
        for begin in range(0, len(self._rows), BLOCK):
            rows: Any = slice(begin, min(begin + BLOCK, len(self._rows)))
            rows = rows if among[rows].all() else begin + np.flatnonzero(among[rows])
            Y = self._rows[rows]
            local = self._model._local(params, Y, knobs)
            evidence[rows] = local.evidence
            shared: dict[str, Any] = {
                "kept": np.float64(len(Y)),
                "square": np.einsum("nd,nd->", Y, Y, dtype=np.float64),
            }
            total = total.merge(Sums({**shared, **local.sums}))
        return _Pass(params, knobs, among, total, float(evidence[among].sum()), order_bits(evidence))

    def work(self, method: str, rows: int) -> tuple[Work, ...]:
        """What a method takes over so many rows: scores of all units, states, and sums."""
        if method == "histogram":
            return (Work(kind="vector", dtype="float64", ops=3 * rows, bytes=8 * rows),)
        if method == "cut":
            rows = -(-rows // LEFT_OUT)
        knobs, (units, dimensions) = self._model._knobs(1.0), (self._model.n_components, self._rows.shape[1])
        num = sum(comb(knobs.candidates, j) for j in range(2, knobs.gamma + 1))
        products = 4 * rows * units * dimensions
        return (
            Work(dtype="float64", ops=products, bytes=rows * self._rows.itemsize * dimensions, rows=rows),
            Work(kind="vector", dtype="float64", ops=rows * (units + 2 * num * knobs.gamma), launches=0),
        )


class _Pass(NamedTuple):
    """Over some rows of a shard. evidence: the sum of theirs; bits: the order of each's."""

    params: Params
    knobs: Knobs
    among: NDArray[np.bool_]
    sums: Sums
    evidence: float
    bits: NDArray[np.uint64]

    def told(self, sums: Sums) -> Sums:
        """Sums with the evidence; nothing of no rows."""
        return Sums({"evidence": np.array(self.evidence), **sums.arrays}) if sums.arrays else sums


def less(total: Sums, went: Sums) -> Sums | None:
    """Sums without those of some rows; None if that leaves one of them too few digits."""
    if not went.arrays:
        return total
    left = {name: array - went[name] for name, array in total.arrays.items()}
    precise = all(np.all(np.abs(went[name]) <= MOST_TAKEN * np.abs(x)) for name, x in left.items())
    return Sums(left) if precise else None
