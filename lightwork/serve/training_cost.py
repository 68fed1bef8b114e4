"""How long steps take of which slices of training are computed after the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from lightwork.serve.schedulers import Step
from lightwork.serve.simulated_runner import StepCost
from lightwork.serve.training import Slice

LEARN = 0.1
"""What the last step counts for in `slowness`."""


@dataclass(slots=True, kw_only=True)
class TrainingCost:
    """rows: seconds of these. forward, back, head: (seconds of a slice, however small, more per token)
    through a layer, back through one, and through the head. layer_s: more where a step comes to another
    layer. slowness: what slices have taken lately, over what these figures say.
    """

    rows: StepCost
    num_layers: int
    forward: tuple[float, float]
    back: tuple[float, float]
    head: tuple[float, float]
    layer_s: float = 0.0
    slowness: float = 1.0

    def predict(self, step: Step) -> float:
        rows_s = sum(self.rows.stages(step)) if step.chunks else 0.0
        return rows_s + self.slices_s(step.slices)

    def slices_s(self, slices: Sequence[Slice], after: Sequence[Slice] = ()) -> float:
        """after: those of the step before these."""
        trained_s, before = 0.0, next((piece.layer for piece in (*after[-1:], *slices)), 0)
        for piece in slices:
            trained_s += self.layer_s if piece.layer != before or not (piece.back or piece.start) else 0.0
            before = piece.layer
            slice_s, token_s = self._line(piece)
            trained_s += slice_s + token_s * piece.count
        return self.slowness * trained_s

    def fitting(self, piece: Slice, seconds: float, after: Sequence[Slice] = ()) -> int:
        """How many of its tokens take no longer, or none."""
        over_s, token_s = self.slices_s([piece], after) - seconds, self.slowness * self._line(piece)[1]
        if over_s <= 0:
            return piece.count
        return max(0, piece.count - ceil(over_s / token_s)) if token_s else 0

    def observe(self, slices: Sequence[Slice], took_s: float) -> None:
        """They have been computed: those to come are priced a little more like them."""
        if not slices or not took_s:
            return
        late = min(2.0, max(0.5, took_s / self.slices_s(slices)))
        self.slowness *= late**LEARN

    def _line(self, piece: Slice) -> tuple[float, float]:
        return self.head if piece.layer == self.num_layers else self.back if piece.back else self.forward
