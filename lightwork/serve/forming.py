"""What forming drafts takes: a part of the price of their rows.

Priced here from counted work; `form_times` has the table that is measured on a real machine before serving.
Neither depends on a clock while serving, so both worlds decide alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lightwork.decode.proposers import Effort

LOOKUP_S = 27e-6
"""Host seconds to look through a text for a draft. Source: measured, `Ngram` on 512 tokens (form_times)."""


class Forming(Protocol):
    """Seconds that a drafter needs."""

    @property
    def beside(self) -> bool:
        """Whether they pass while the target computes; else before it."""
        ...

    def seconds(self, texts: int, rows: int, context: float) -> float:
        """texts: that are asked for a draft, one or more. rows: of the longest. context: their mean length.

        Never falls as there are more of any.
        """
        ...

    def opening_s(self, context: float) -> float:
        """What a text of that length takes besides, when it is asked for its first draft."""
        ...


class PassCost(Protocol):
    """A model whose passes are priced, such as a `ClusterCost`."""

    def pass_s(self, chunks: Sequence[tuple[int, int]]) -> float:
        """Seconds of one over these chunks (start, rows), each scored at its end."""
        ...


@dataclass(frozen=True, slots=True)
class Priced:
    """A drafter's passes by what its own model's cost, and the host's time for each text.

    of: the model with a URI, at the place where the drafter computes. What a text gained since its last draft
    counts as one row.
    """

    effort: Effort
    of: Callable[[str], PassCost]

    @property
    def beside(self) -> bool:
        return self.effort.beside

    def seconds(self, texts: int, rows: int, context: float) -> float:
        rows, at = max(rows, self.effort.least), round(context)
        total_s = LOOKUP_S * texts
        for model, block in self.effort.passes:
            if block:
                total_s += self.of(model).pass_s([(0, at + rows)] * texts)
            else:
                total_s += rows * self.of(model).pass_s([(at, 1)] * texts)
        return total_s

    def opening_s(self, context: float) -> float:
        """A pass over it, so that its keys and values are there."""
        return sum(self.of(model).pass_s([(0, round(context))]) for model, _ in self.effort.passes)


def together(target_s: float, forming_s: float, *, beside: bool) -> float:
    """A step of the target, and forming its drafts."""
    return max(target_s, forming_s) if beside else target_s + forming_s
