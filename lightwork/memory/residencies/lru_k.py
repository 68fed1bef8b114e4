"""LRU-K: who was used K times goes after who was not, and then the one whose K-th last use is oldest.

Paper:  "The LRU-K Page Replacement Algorithm For Database Disk Buffering", 1993; in "AIOS: LLM Agent
        Operating System", 2024, what leaves an agent's memory
Idea:   one use says little: what a scan touches once never pushes out what is used again and again. Histories
        outlive the stay, so what comes back soon is known
Shapes: names in order of use -> the name that goes
Cost:   O(k) per use, O(residents) per eviction; k numbers for each name ever used
Claims: aios
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from lightwork.errors import RangeError


@dataclass(slots=True)
class State:
    """uses: so far. last: of each item, when it was used, at most the last k times."""

    uses: int = 0
    last: dict[str, deque[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LRUK:
    """k=1 is LRU; the publications take 2."""

    k: int = 2

    def __post_init__(self) -> None:
        if self.k < 1:
            raise RangeError(f"LRUK cannot look back k={self.k} uses", expected="k >= 1", fix="LRUK(k=2)")

    @property
    def ring(self) -> None:
        return None

    def init(self, order: Sequence[str]) -> State:
        return State()

    def use(self, state: State, name: str) -> tuple[str, ...]:
        """What comes is not known."""
        state.uses += 1
        history = state.last.get(name)
        if history is None:
            history = state.last[name] = deque(maxlen=self.k)
        history.append(state.uses)
        return ()

    def victim(self, state: State, among: Collection[str]) -> str:
        return min(among, key=lambda name: self._rank(state.last.get(name, ())))

    def _rank(self, history: Sequence[int]) -> tuple[int, int]:
        """When the k-th last use was, 0 if there were fewer; then when the last one was."""
        if not history:
            return (0, 0)
        return (history[0] if len(history) == self.k else 0, history[-1])
