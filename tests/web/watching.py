"""A population of this process that a page watches, and a line to it that can be cut."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any, NamedTuple

from lightwork.runtime.actors import Actors, Ref
from lightwork.runtime.clock import WallClock
from lightwork.runtime.effects import Sleep
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.http.main import listen
from lightwork.web.monitor import Monitor
from lightwork.web.ring import Ring

STEP_S = 0.02


class Watched(NamedTuple):
    """over: set it, and the run ends."""

    url: str
    members: Sequence[Ref]
    over: Event


@contextmanager
def watched(name: str, cls: type, args: Sequence[Any], *, keep: int = 2048) -> Iterator[Watched]:
    """An actor of a class for each of args, with a page. name: of the run. keep: events in its ring."""
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    listener.close()
    trace = Trace(name, keep=0, calls=False)
    monitor = Monitor(name, trace, port=port)
    monitor.ring = Ring(keep)
    begun, over = Event(), Event()
    members: list[Ref] = []

    async def main() -> None:
        begun.set()
        while not over.is_set():
            await Sleep(STEP_S)

    def run() -> None:
        with Actors(Kernel(WallClock(), trace=trace)) as actors:
            members.extend(actors.create(cls, arg) for arg in args)
            monitor.perform(actors, main())

    thread = Thread(target=run, daemon=True)
    thread.start()
    assert begun.wait(60)
    try:
        yield Watched(f"http://127.0.0.1:{port}", members, over)
    finally:
        over.set()
        thread.join(60)


class Relay:
    """A way to a server of this machine, which can be cut."""

    def __init__(self, url: str) -> None:
        self._port = int(url.rpartition(":")[2])
        self._listener = listen("127.0.0.1", 0)
        self._listener.listen()
        self._lines: list[socket.socket] = []
        self.whole = True
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End what is open, and whatever is opened."""
        self.whole = False
        for line in self._lines:
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self.whole = True

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # it was closed
            while True:
                near, _ = self._listener.accept()
                if not self.whole:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._port))
                self._lines += [near, far]
                for source, target in ((near, far), (far, near)):
                    Thread(target=_pass_on, args=(source, target), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
