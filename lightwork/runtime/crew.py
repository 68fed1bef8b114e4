"""Threads for calls that may hang: as many as calls run at once, and none that the process waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

MOST_THREADS = 256
"""Calls beyond so many wait until one of those before them ends."""


class Crew:
    """A pool whose threads are started when all others are busy, and daemonic: one that hangs keeps neither
    later calls nor the process's end."""

    def __init__(self, name: str, most: int = MOST_THREADS) -> None:
        self._name, self._most = name, most
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = self._open = 0

    def submit(self, call: Callable[[], object]) -> None:
        """Run it soon. It takes care of its own errors."""
        with self._lock:
            self._open += 1
            more = self._open > self._threads and self._threads < self._most
            self._threads += more
        self._calls.put(call)
        if more:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def shutdown(self, wait: bool) -> None:
        """Threads end once nothing is left to do; nobody waits for one that hangs."""
        with self._lock:
            threads = self._threads
        for _ in range(threads):
            self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            finally:
                with self._lock:
                    self._open -= 1
