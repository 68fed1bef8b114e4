"""Callers that wait until there is room for them, first come, first served."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeVar

from lightwork.errors import BusyError
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel

T = TypeVar("T")


class Turns:
    """Who is told that there may be room is the one who has waited longest.

    Each caller has a place, which holds the bell that it waits for, if it waits.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._order: deque[list[Future]] = deque()

    async def wait(self, attempt: Callable[[], T]) -> T:
        """The value of attempt() once it does not raise BusyError. Raises whatever else it raises."""
        place: list[Future] = []
        self._order.append(place)
        try:
            while True:
                if self._order[0] is place:
                    try:
                        return attempt()
                    except BusyError:
                        pass
                place[:] = [self._kernel.future("room in the queue")]
                await place[0]
        finally:
            self._order.remove(place)
            self.ring()

    def ring(self) -> None:
        """There may be room."""
        for bell in self._order[0] if self._order else ():
            if not bell.done:
                bell.set()
