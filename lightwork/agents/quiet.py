"""What tools print, kept out of the program's own output.

sys.stdout is one for the whole process, so while any tool runs it is an object that asks, for every write,
on whose behalf that is. What threads of a tool's own print is not caught; what its child processes write is,
inside a `ChildOutput`.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Coroutine, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TextIO

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


class Children(Protocol):
    """Where child processes write while tools run."""

    def take(self, running: Sequence[Note]) -> None:
        """Hand on what they have written so far, while these calls ran. Called with the lock."""
        ...


class Calls:
    """Those that run, and what their child processes write to. lock: around every change of who runs."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: list[Note] = []
        self.children: Children | None = None

    def begin(self, note: Note) -> None:
        with self.lock:
            self.take()
            self.running.append(note)
            if not isinstance(sys.stdout, Shared):
                sys.stdout = Shared(sys.stdout)

    def end(self, note: Note) -> None:
        with self.lock:
            self.take()
            self.running.remove(note)
            if not self.running and isinstance(sys.stdout, Shared):
                sys.stdout = sys.stdout.real

    def take(self) -> None:
        """With the lock."""
        if self.children is not None:
            self.children.take(self.running)


calls = Calls()
_note: ContextVar[Note | None] = ContextVar("note", default=None)


class Shared:
    """Standard output while tools run. real: what it was before, and is for everybody else."""

    def __init__(self, real: TextIO) -> None:
        self.real = real

    def write(self, text: str) -> int:
        note = _note.get()
        if note is None:
            return self.real.write(text)
        note.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def fileno(self) -> int:
        """A tool that hands it to a child process means what children inherit."""
        return 1 if calls.children is not None and _note.get() is not None else self.real.fileno()

    @property
    def buffer(self) -> Any:
        note = _note.get()
        return self.real.buffer if note is None else _Bytes(note)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class _Bytes(io.RawIOBase):
    """Bytes that a tool writes to standard output, as text of its note."""

    def __init__(self, note: Note) -> None:
        self._note = note

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._note.write(bytes(data).decode(errors="replace"))
        return len(data)


@contextmanager
def collecting(note: Note) -> Iterator[None]:
    """A call: what this thread prints goes to the note, and what children do that run meanwhile."""
    with _call(note), _printing(note):
        yield


@contextmanager
def _call(note: Note) -> Iterator[None]:
    """From its begin to its end."""
    calls.begin(note)
    try:
        yield
    finally:
        calls.end(note)


@contextmanager
def _printing(note: Note) -> Iterator[None]:
    token = _note.set(note)
    try:
        yield
    finally:
        _note.reset(token)


class Quietly:
    """Awaits a coroutine, what it prints going to a note."""

    def __init__(self, coro: Coroutine[Any, Any, Any], note: Note) -> None:
        self._coro, self._note = coro, note

    def __await__(self) -> Generator[Any, Any, Any]:
        value, error = None, None
        with _call(self._note):
            try:
                while True:
                    with _printing(self._note):
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
