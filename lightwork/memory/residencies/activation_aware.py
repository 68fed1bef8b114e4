"""Activation-aware: who the text at hand has needed least often goes.

Paper:  "MoE-Infinity: Efficient MoE Inference on Personal Machines with Sparsity-Aware Expert Cache", 2024
Idea:   one text activates few experts again and again, another text others; so uses are counted over the
        present text alone, not since the start; of equals, the one whose last use is longer ago goes
Shapes: names in order of use -> the name that goes
Cost:   O(1) per use, O(residents) per eviction; the last `window` names are kept
Claims: moe_survey
Differs: the paper begins to count where a sequence begins, and favours the layers that come next. Here the
        last `window` uses stand for the present text, since rows of several go through one cache; and each
        layer has a cache of its own
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from lightwork.errors import RangeError


@dataclass(slots=True)
class State:
    """recent: the last uses. counts: how many of those are of each item. at, last: uses so far, and the last
    of each item."""

    at: int = 0
    recent: deque[str] = field(default_factory=deque)
    counts: Counter[str] = field(default_factory=Counter)
    last: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationAware:
    """window: uses that are counted; for a layer's experts, tokens of a text times experts of a token."""

    window: int = 128

    def __post_init__(self) -> None:
        if self.window < 1:
            raise RangeError(
                f"window is {self.window}", expected="at least 1 use", fix="ActivationAware(window=128)"
            )

    @property
    def ring(self) -> None:
        return None

    def init(self, order: Sequence[str]) -> State:
        return State()

    def use(self, state: State, name: str) -> tuple[str, ...]:
        """Counts it, and forgets the oldest use; what comes is not known."""
        state.at += 1
        state.last[name] = state.at
        state.recent.append(name)
        state.counts[name] += 1
        if len(state.recent) > self.window:
            state.counts[state.recent.popleft()] -= 1
        return ()

    def victim(self, state: State, among: Collection[str]) -> str:
        return min(among, key=lambda name: (state.counts[name], state.last.get(name, 0)))
