"""Where a run is in an order of uses that repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from lightwork.errors import RangeError


@dataclass(slots=True)
class Cycle:
    """order: of uses; a name may be in it more than once. at: the use that runs, -1 before the first. ran:
    units since Window last exchanged some."""

    order: tuple[str, ...]
    at: int = -1
    ran: int = 0

    def move_to(self, name: str) -> None:
        """The next use of this name runs; those between are left out, as when a pass is given up."""
        self.at = (self.at + self.distance(name)) % len(self.order)

    def distance(self, name: str) -> int:
        """Uses until that of this name: at least 1. Raises RangeError for one that is not in the order."""
        for d in range(1, len(self.order) + 1):
            if self.order[(self.at + d) % len(self.order)] == name:
                return d
        raise RangeError(f"{name!r} is used", expected="one of the order that was given")

    def coming(self, count: int, without: frozenset[str] = frozenset()) -> tuple[str, ...]:
        """So many different names from the one that runs on, in order of use."""
        places = (self.order[(self.at + d) % len(self.order)] for d in range(len(self.order)))
        return tuple(islice((name for name in dict.fromkeys(places) if name not in without), count))


def cycle(order: Sequence[str], who: object) -> Cycle:
    """Raises RangeError without an order."""
    if not order:
        raise RangeError(
            f"{who!r} does not know what is used in which order",
            expected="layers of one model",
            fix="LRU(), which need not know",
        )
    return Cycle(tuple(order))
