"""The latest events of a run, numbered by one, so that a page that lost its connection goes on where it was.

Any thread adds events, any number of pages read: each asks for what came after the last one it has seen, and
is told which are gone if that is too long ago. Nothing waits for a slow page.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection
from itertools import islice
from threading import Lock
from typing import Any, NamedTuple

from lightwork.runtime.perfetto import plain

KEPT = 2048


class Event(NamedTuple):
    """number: from 1. data: JSON."""

    number: int
    name: str
    data: str

    def sent(self) -> bytes:
        """As a server-sent event."""
        return f"id: {self.number}\nevent: {self.name}\ndata: {self.data}\n\n".encode()


class Ring:
    """keep: how many events."""

    def __init__(self, keep: int = KEPT) -> None:
        self._events: deque[Event] = deque(maxlen=keep)
        self._lock = Lock()
        self.newest = 0

    @property
    def over(self) -> bool:
        """Whether nothing comes any more."""
        return bool(self._events) and self._events[-1].name == "end"

    def add(self, name: str, data: Any) -> int:
        """Returns its number. What comes behind an `end` is no event any more."""
        text = json.dumps(data, separators=(",", ":"), default=plain)
        with self._lock:
            if self.over:
                return self.newest
            self.newest += 1
            self._events.append(Event(self.newest, name, text))
            return self.newest

    def after(self, number: int) -> list[Event]:
        """What came after that event; first a `gap` if some of it is gone, with the number of the last of
        these."""
        with self._lock:
            first = self.newest - len(self._events) + 1
            found = [*islice(self._events, max(0, number + 1 - first), None)]
        if number + 1 < first:
            lost = {"from": number + 1, "to": first - 1}
            found.insert(0, Event(first - 1, "gap", json.dumps(lost)))
        return found

    def begin(self, names: Collection[str], latest: str) -> tuple[int, list[Event]]:
        """For a page that has seen nothing: those of these names that are still there, up to the latest of
        another one; and the number to go on after."""
        with self._lock:
            events, last = [*self._events], self.newest
        last = next((event.number - 1 for event in reversed(events) if event.name == latest), last)
        return last, [event for event in events if event.name in names and event.number <= last]
