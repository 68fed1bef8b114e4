"""What tools print, kept out of the program's own output.

sys.stdout is one for the whole process, so while any tool runs it is an object that asks, for every write,
on whose behalf that is. What a tool's child processes write to their inherited output is not caught, nor
what threads of its own print.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

MOST_CHARS = 10_000


class Note:
    """What one call printed, its first MOST_CHARS characters."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._left = MOST_CHARS
        self._lost = 0

    def write(self, text: str) -> None:
        kept = text[: self._left]
        self._left -= len(kept)
        self._lost += len(text) - len(kept)
        if kept:
            self._parts.append(kept)

    def __str__(self) -> str:
        cut = f" ... ({self._lost:,} characters more)" if self._lost else ""
        return "".join(self._parts) + cut


_note: ContextVar[Note | None] = ContextVar("note", default=None)
_lock = threading.Lock()
_calls = 0


class _Shared:
    """Standard output while tools run. real: what it was before, and is for everybody else."""

    def __init__(self, real: TextIO) -> None:
        self.real = real

    def write(self, text: str) -> int:
        note = _note.get()
        if note is None:
            return self.real.write(text)
        note.write(text)
        return len(text)

    def writelines(self, lines: Iterator[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@contextmanager
def collecting(note: Note) -> Iterator[None]:
    """What this thread prints goes to the note."""
    _enter()
    token = _note.set(note)
    try:
        yield
    finally:
        _note.reset(token)
        _leave()


def _enter() -> None:
    global _calls
    with _lock:
        _calls += 1
        if not isinstance(sys.stdout, _Shared):
            sys.stdout = _Shared(sys.stdout)


def _leave() -> None:
    global _calls
    with _lock:
        _calls -= 1
        if not _calls and isinstance(sys.stdout, _Shared):
            sys.stdout = sys.stdout.real


class Quietly:
    """Awaits a coroutine, what it prints going to a note."""

    def __init__(self, coro: Coroutine[Any, Any, Any], note: Note) -> None:
        self._coro, self._note = coro, note

    def __await__(self) -> Generator[Any, Any, Any]:
        value, error = None, None
        try:
            while True:
                with collecting(self._note):
                    try:
                        asked = self._coro.send(value) if error is None else self._coro.throw(error)
                    except StopIteration as end:
                        return end.value
                value = error = None
                try:
                    value = yield asked
                except BaseException as raised:
                    error = raised
        finally:
            self._coro.close()
