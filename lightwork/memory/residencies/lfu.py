"""LFU: who was needed least often goes.

Paper:  "A Survey on Inference Optimization Techniques for Mixture of Experts Models", 2024 (expert caching)
Idea:   routers of trained models take a few experts far more often than others, so the count of all uses so
        far says who will be needed again; of equals, the one whose last use is longer ago goes
Shapes: names in order of use -> the name that goes
Cost:   O(1) per use, O(residents) per eviction
Claims: moe_survey
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class State:
    """at: uses so far. counts, last: of each item, how many and the last of them."""

    at: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LFU:
    """Least frequently used, over everything since the start."""

    @property
    def ring(self) -> None:
        return None

    def init(self, order: Sequence[str]) -> State:
        return State()

    def use(self, state: State, name: str) -> tuple[str, ...]:
        """Counts it; what comes is not known."""
        state.at += 1
        state.last[name] = state.at
        state.counts[name] = state.counts.get(name, 0) + 1
        return ()

    def victim(self, state: State, among: Collection[str]) -> str:
        return min(among, key=lambda name: (state.counts.get(name, 0), state.last.get(name, 0)))
