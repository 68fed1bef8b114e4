"""Belady: who is needed again last goes; the bound that no policy beats.

Paper:  "A study of replacement algorithms for a virtual-storage computer", 1966
Idea:   the whole trace is known, so what goes is the item whose next use is farthest away
Shapes: names in order of use -> the name that goes
Cost:   O(log trace) per use and per resident at an eviction
Claims: sn40l
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from lightwork.errors import RangeError


@dataclass(slots=True)
class State:
    """at: uses so far. uses: by name, where the trace has it."""

    at: int = 0
    uses: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Belady:
    """trace: the names that will be used, in order; of a run that is repeated, they are known."""

    trace: tuple[str, ...] = ()

    @property
    def ring(self) -> None:
        return None

    def init(self, order: Sequence[str]) -> State:
        """Raises RangeError without a trace."""
        if not self.trace:
            raise RangeError(
                "Belady does not know what will be used",
                expected="the trace of a run",
                fix="LRU(), which need not know",
            )
        state = State()
        for i, name in enumerate(self.trace):
            state.uses.setdefault(name, []).append(i)
        return state

    def use(self, state: State, name: str) -> tuple[str, ...]:
        """Returns the next of the trace. Raises RangeError for a use that it does not have there."""
        if self.trace[state.at : state.at + 1] != (name,):
            raise RangeError(
                f"use {state.at} is of {name!r}",
                expected=f"that of the trace, {self.trace[state.at : state.at + 1]}",
                fix="give the trace that is run",
            )
        state.at += 1
        return self.trace[state.at : state.at + 1]

    def victim(self, state: State, among: Collection[str]) -> str:
        return max(among, key=lambda name: self._next(state, name))

    def _next(self, state: State, name: str) -> int:
        uses = state.uses.get(name, [])
        i = bisect_left(uses, state.at)
        return uses[i] if i < len(uses) else len(self.trace)
