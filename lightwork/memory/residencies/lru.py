"""LRU: who was not needed for the longest time goes.

Paper:  "SambaNova SN40L: Scaling the AI Memory Wall with Dataflow and Composition of Experts", 2024
Idea:   fast memory is a cache of whole experts, managed by software; an expert is read only, so giving it up
        costs nothing
Shapes: names in order of use -> the name that goes
Cost:   O(1) per use, O(residents) per eviction
Claims: sn40l
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LRU:
    """Least recently used. Its state: when each item was last used, in uses."""

    @property
    def ring(self) -> None:
        return None

    def init(self, order: Sequence[str]) -> dict[str, int]:
        return {}

    def use(self, state: dict[str, int], name: str) -> tuple[str, ...]:
        """Makes it the last to go; what comes is not known."""
        last = next(reversed(state.values()), 0)
        state.pop(name, None)
        state[name] = last + 1
        return ()

    def victim(self, state: dict[str, int], among: Collection[str]) -> str:
        return min(among, key=lambda name: state.get(name, 0))
