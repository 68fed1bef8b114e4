"""Sliding: a window of blocks moves through the model; each is fetched anew for every token.

Paper:  "TPI-LLM: Serving 70B-scale LLMs Efficiently on Low-resource Edge Devices", 2024
Idea:   attention and MLP of a layer are blocks of their own; while one computes, the next are fetched, from
        the last one on those of the next token; whatever has run gives up its place
Shapes: blocks in order of use -> the window - 1 that follow; who goes is the one that has run
Cost:   every block is copied for every token; memory for `window` blocks of the largest size
Claims: tpi_llm
Differs: of the embedding, which would be the first block, the rows of the step's tokens are read alone
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from lightwork.errors import RangeError
from lightwork.memory.residencies import Ring
from lightwork.memory.residencies._cycle import Cycle, cycle


@dataclass(frozen=True, slots=True, kw_only=True)
class Sliding:
    """window: blocks in memory at once, with the one that computes."""

    window: int = 2

    def __post_init__(self) -> None:
        if self.window < 2:
            raise RangeError(
                f"Sliding has a window of {self.window}",
                expected="at least 2: one that computes and one that is fetched",
                fix="Sliding(window=2)",
            )

    @property
    def ring(self) -> Ring:
        return Ring(slots=self.window, layers=False)

    def init(self, order: Sequence[str]) -> Cycle:
        return cycle(order, self)

    def use(self, state: Cycle, name: str) -> tuple[str, ...]:
        state.move_to(name)
        return state.coming(self.window)[1:]

    def victim(self, state: Cycle, among: Collection[str]) -> str:
        return max(among, key=state.distance)
