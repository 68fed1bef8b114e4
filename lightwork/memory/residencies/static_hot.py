"""Static hot set: the items that an earlier run needed most stay, the others take turns in what is left.

Paper:  "A Survey on Inference Optimization Techniques for Mixture of Experts Models", 2024 (expert caching)
Idea:   which experts are hot is known from a trace and never learnt again; nothing that is used now can push
        them out, so a text unlike those of the trace pays for it
Shapes: names in order of use -> the name that goes
Cost:   O(hot) once, O(1) per use, O(residents) per eviction
Claims: moe_survey
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class State:
    """rank: of each hot item, 0 the hottest. at, last: uses so far, and the last of each item."""

    rank: dict[str, int]
    at: int = 0
    last: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticHot:
    """hot: the names that stay, the hottest first. Those that there is no room for go before the others."""

    hot: tuple[str, ...] = ()

    @property
    def ring(self) -> None:
        return None

    def init(self, order: Sequence[str]) -> State:
        return State({name: i for i, name in enumerate(self.hot)})

    def use(self, state: State, name: str) -> tuple[str, ...]:
        """Of those that are not hot, it is the last to go; what comes is not known."""
        state.at += 1
        state.last[name] = state.at
        return ()

    def victim(self, state: State, among: Collection[str]) -> str:
        cold = len(self.hot)
        return max(among, key=lambda name: (state.rank.get(name, cold), -state.last.get(name, 0)))
