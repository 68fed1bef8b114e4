"""The kind of technique that says in which order those who wait are served, and when a turn is over.

The same policy orders the calls of agents before a model or a tool (`runtime.queue`) and the sequences inside
the serving engine (`ContextSwitch`): what it sees is a `Turn` and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(slots=True, eq=False)
class Turn:
    """Somebody who wants a place, has one, or waits to have it again.

    number: in order of arrival. joined: counts up whenever somebody joins the queue, for the first time or
    again. priority: the higher, the sooner. tokens, seconds: of service since the place was given.
    """

    number: int
    joined: int
    priority: int = 0
    tokens: int = 0
    seconds: float = 0.0


class QueuePolicy(Protocol):
    """Who is next, and who gives up a place. Decides by what it is given, and keeps no state."""

    def rank(self, turn: Turn) -> tuple[int, int]:
        """Whose rank is lowest is next. It may not change while the turn waits."""
        ...

    def over(self, running: Turn, first: Turn) -> bool:
        """Whether this turn is over, now that `first` is the next in the queue."""
        ...
