"""A process that computes for this one: how it starts, and what it says until it is ready.

It is a module of ours, in a process (given a pipe as its first argument) or in an actor (`actor`). It is sent
an order, and says ("progress", ...), ("failed", why) or ("ready", what it has become), each in a list;
("lost", why) if the failure is another's. It ends when the pipe does.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from subprocess import DEVNULL, Popen, TimeoutExpired
from typing import Any, Protocol

from lightwork.errors import LightworkError
from lightwork.runtime.progress import Progress

GRACE_S = 1.0
"""Who has lost another one is not the cause; so long the cause is waited for."""
END_S = 5.0
"""So long a process may take to end when it has been told to, or its pipe has ended."""


class LostError(LightworkError):
    """A process has lost another one."""


class Process(Protocol):
    """What computes, as `Popen` is."""

    @property
    def pid(self) -> int: ...
    def wait(self, timeout: float | None = None) -> int | str:
        """Its exit code, or why it ended. Raises TimeoutExpired if it runs on."""
        ...

    def kill(self) -> None: ...


class Child:
    """name: in errors. pipe: to the process."""

    def __init__(self, name: str, process: Process, pipe: Connection, order: Any) -> None:
        self.name = name
        self.process = process
        self.pipe = pipe
        with suppress(OSError):  # one that has ended already is told of by `wait`
            self.pipe.send(order)
        self._ready: Any = None

    def wait(self, progress: Progress | None = None) -> Any:
        """What it is when it can serve. Raises LightworkError if it cannot."""
        while self._ready is None:
            self.hear(progress)
        return self._ready

    def hear(self, progress: Progress | None = None) -> bool:
        """Take the next thing that it says; is it ready? Raises LightworkError once it is not any more."""
        try:
            name, *told = self.pipe.recv()[0]
        except (EOFError, OSError):
            name, told = "failed", [f"it {self.end()}"]
        if name in ("failed", "lost"):
            kind = LightworkError if name == "failed" else LostError
            what = "did not start" if self._ready is None else "was lost"
            raise kind(f"{self.name} {what}: {told[0]}", fix="restart the server")
        if name == "ready":
            self._ready = told[0]
        elif name == "progress" and progress is not None:
            progress(*told)
        return self._ready is not None

    def end(self) -> str:
        """How it ended, its pipe being closed; killed if it does not by itself."""
        try:
            how = self.process.wait(END_S)
        except TimeoutExpired:
            self.process.kill()
            how = self.process.wait()
        return f"ended with exit code {how}" if isinstance(how, int) else f"ended: {how}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()


def outlive_signals() -> None:
    """In such a process: Ctrl-C and SIGTERM may reach all of them, and the first one decides.

    It drains, which needs the others; they end when its pipe does.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def start_process(name: str, module: str, order: Any, fds: Sequence[int] = ()) -> Child:
    """fds: of pipes and files that it gets, too, as further arguments."""
    pipe, theirs = Pipe()
    passed = (theirs.fileno(), *fds)
    process = Popen([sys.executable, "-m", module, *map(str, passed)], pass_fds=passed, stdin=DEVNULL)
    theirs.close()
    return Child(name, process, pipe, order)


def listen(children: Sequence[Child], progress: Progress | None = None, *, until_ready: bool = False) -> None:
    """Hear what they say, for ever or until all are ready. Raises LightworkError as soon as one fails."""
    heard: dict[Any, Child] = {child.pipe: child for child in children}
    suspect: LostError | None = None
    while heard and (said := wait([*heard], GRACE_S if suspect else None)):
        for pipe in said:
            try:
                if heard[pipe].hear(progress) and until_ready:
                    del heard[pipe]
            except LostError as error:
                suspect = suspect or error
                del heard[pipe]
    if suspect is not None:
        raise suspect
