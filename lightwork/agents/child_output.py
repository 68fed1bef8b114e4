"""What child processes of tools write, kept out of the program's own output.

    with ChildOutput() as children:
        kernel.run(...)                 # print() here is seen as ever; what `make` says in a tool is not
    str(children.rest)

A child process writes to the descriptors it inherits, and these are one for the whole process: here they are
a pipe. What comes of it while one call runs is that call's; while several do nobody can say whose it is, and
it is kept apart from all of them.
"""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Literal, TextIO

from lightwork.agents.quiet import Note, Shared, calls
from lightwork.errors import UsageError

CHUNK_BYTES, MOST_CHUNKS = 1 << 16, 16
"""What is read at once, and how often: together as much as a pipe may hold."""
Name = Literal["stdout", "stderr"]


class ChildOutput:
    """Inside a `with`, what child processes inherit as standard output is a pipe that is read here; as
    standard error, too, where that is a terminal. sys.stdout and sys.stderr still write where they did.

    rest: what came while no call ran, or more than one. One at a time; raises UsageError for another.
    """

    def __init__(self) -> None:
        self.rest = Note()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._read = -1
        self._ended = False
        self._moved: list[_Moved] = []

    def __enter__(self) -> ChildOutput:
        if calls.children is not None:
            raise UsageError("child processes write to another ChildOutput", expected="one at a time")
        if not all(map(_is_open, range(3))):
            return self  # nobody sees what is written, and the pipe would take the place of what is closed
        self._read, write = os.pipe()
        os.set_blocking(self._read, False)
        self._moved = [_Moved("stdout", 1, write)]
        if os.isatty(2):
            self._moved.append(_Moved("stderr", 2, write))
        os.close(write)
        with calls.lock:
            calls.children = self
        threading.Thread(target=self._listen, name="lightwork-children", daemon=True).start()
        return self

    def __exit__(self, *ended: object) -> None:
        if calls.children is not self:
            return
        with calls.lock:
            calls.take()
            calls.children = None
        with ExitStack() as all_of_them:
            for moved in self._moved:
                all_of_them.callback(moved.back)

    def take(self, running: Sequence[Note]) -> None:
        note = running[0] if len(running) == 1 else self.rest
        for _ in range(MOST_CHUNKS):
            try:
                data = os.read(self._read, CHUNK_BYTES)
            except BlockingIOError:
                return
            if not data:
                self._ended = True
                return
            note.write(self._decoder.decode(data))

    def _listen(self) -> None:
        """On a thread of its own, until nobody can write any more: a child that stays is not cut off."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        while not self._ended:
            poll.poll()
            with calls.lock:
                self.take(calls.running if calls.children is self else ())
        os.close(self._read)


class _Moved:
    """A standard stream whose descriptor is something else from now on: it writes to a copy of the old."""

    def __init__(self, name: Name, fd: int, to: int) -> None:
        self._name, self._fd, self._kept = name, fd, os.dup(fd)
        self._before: TextIO = getattr(sys, name)
        self._before.flush()
        self._now = _on(self._kept, self._before) if _number(self._before) == fd else self._before
        setattr(sys, name, self._now)
        os.dup2(to, fd)

    def back(self) -> None:
        """As it was. A call that hangs may still have its hands on the stream."""
        try:
            self._now.flush()
        finally:
            stream = getattr(sys, self._name)
            if stream is self._now:
                setattr(sys, self._name, self._before)
            elif isinstance(stream, Shared) and stream.real is self._now:
                stream.real = self._before
            os.dup2(self._kept, self._fd)
            if self._now is not self._before:
                with suppress(OSError):  # said already by the flush
                    self._now.close()
            os.close(self._kept)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _number(stream: TextIO) -> int:
    """Of its descriptor; -1 if it has none."""
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):
        return -1


def _on(fd: int, stream: TextIO) -> TextIO:
    """The stream, on another descriptor; as little buffered as it is."""
    raw, at_once = io.FileIO(fd, "w", closefd=False), getattr(stream, "write_through", False)
    return io.TextIOWrapper(
        raw if at_once else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=bool(stream.line_buffering),
        write_through=at_once,
    )
