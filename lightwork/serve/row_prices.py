"""Seconds of a step with more rows, the forming of their drafts included, for whoever divides rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from statistics import fmean

from lightwork.cluster.devices import Curve
from lightwork.decode.proposers import Draft
from lightwork.serve.forming import Forming, together
from lightwork.serve.schedulers import Step

ASSUMED = 1 / 32
"""Where no cost model is at hand, a row makes a step longer by this share of one without rows."""
SHORTEST_S = 1e-12
"""No step is predicted to take less."""
ALIKE = 8
"""So many steps of as many sequences and tokens one after another have the same prices, as texts grow little;
with a small model, asking for them takes a twentieth of a step."""


class RowPrices:
    """predict: seconds of a step, see `View`. forming: what drafts take; None: nothing."""

    def __init__(self, predict: Callable[[Step], float] | None, forming: Forming | None) -> None:
        self.beside = forming is not None and forming.beside
        self._predict = predict
        self._forming = forming
        self._like, self._uses = (0, 0), 0
        self._context = 0.0
        self._curves: dict[int, Curve] = {}
        self._formed: dict[tuple[int, int], float] = {}

    def opening_s(self, context: int) -> float:
        """See `Forming`."""
        return 0.0 if self._forming is None else self._forming.opening_s(context)

    def look_at(self, step: Step) -> None:
        """What is asked from now on is about this step, which has no drafts yet."""
        like = (len(step.chunks), step.num_rows)
        self._uses += 1
        if like == self._like and self._uses <= ALIKE:
            return
        self._like, self._uses = like, 1
        self._context = fmean(chunk.end for chunk in step.chunks)
        self._curves.clear()
        self._formed.clear()

    def curve(self, step: Step, most: int) -> Curve:
        """Of the target, predicted for 0, 1, 2, 4, ... and `most` more rows; never falling, and never 0."""
        if most not in self._curves:
            curve: list[tuple[float, float]] = []
            longest_s = SHORTEST_S
            for rows in (0, *(1 << i for i in range(most.bit_length()) if 1 << i < most), most):
                longest_s = max(longest_s, self._predicted(step, rows))
                curve.append((rows, longest_s))
            self._curves[most] = tuple(curve)
        return self._curves[most]

    def forming_s(self, texts: int, rows: int) -> float:
        """Of drafts for so many texts, the longest of so many rows."""
        if self._forming is None:
            return 0.0
        if (texts, rows) not in self._formed:
            self._formed[texts, rows] = self._forming.seconds(texts, rows, self._context)
        return self._formed[texts, rows]

    def whole_s(self, target_s: float, texts: int, rows: int, opening_s: float = 0.0) -> float:
        """A step of the target that takes so long, with such drafts."""
        return together(target_s, self.forming_s(texts, rows) + opening_s, beside=self.beside)

    def _predicted(self, step: Step, rows: int) -> float:
        if self._predict is None:
            return 1.0 + ASSUMED * (step.num_rows + rows)
        if not rows:
            return self._predict(step)
        share, rest = divmod(rows, len(step.chunks))
        step.drafts = [_any_draft(share + (i < rest)) for i in range(len(step.chunks))]
        try:
            return self._predict(step)
        finally:
            step.drafts = []


@cache
def _any_draft(rows: int) -> Draft:
    return Draft.chain([0] * rows)
