"""A process that light actors live in: `python -m lightwork.runtime.host DESCRIPTOR`.

Descriptor: of the pipe to the process that made the places, which says first what to be (`Order`); it ends
with that process. In a Ray actor it is given the pipe. Other places connect to it when they have to say
something.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import AuthenticationError, spawn
from multiprocessing.connection import Client, Connection, Listener
from secrets import token_hex
from threading import Thread
from typing import Any

from lightwork.runtime.actors import Actors
from lightwork.runtime.child import outlive_signals
from lightwork.runtime.clock import Moment, WallClock
from lightwork.runtime.garbage import rarely
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.line import Line, Link
from lightwork.runtime.mesh import Mesh
from lightwork.runtime.peer import Peer

importing = False
"""Whether this is a host that imports the program: it must not start hosts of its own."""


@dataclass(frozen=True, slots=True)
class Order:
    """number: of this place; names: of all. life: how often its process has been started before.

    key: with which places know each other. path, main: what the starting program's classes are found by.
    """

    number: int
    names: tuple[str, ...]
    life: int
    seed: int
    moment: Moment
    key: bytes
    path: tuple[str, ...]
    main: Mapping[str, str]


def program() -> dict[str, str]:
    """The file or module that this program began with, for `spawn.prepare`; empty if that is no module."""
    found = spawn.get_preparation_data("lightwork")
    main = {k: v for k, v in found.items() if k.startswith("init_main_from_")}
    return {k: v for k, v in main.items() if k.endswith("name") or v.endswith(".py")}


class Host:
    """The actors here, and the ways to them."""

    def __init__(self, pipe: Connection, order: Order) -> None:
        _import_program(order)
        self._order = order
        self._kernel = Kernel(WallClock(order.moment), seed=order.seed)
        self._listener = Listener(_beside(pipe), authkey=order.key)
        actors = Actors.among(self._kernel, order.number, order.names, self._connect, life=order.life)
        self._mesh: Mesh = actors.mesh
        self._kernel.lost = self._mesh.report
        Thread(target=self._accept, name="lightwork-accept", daemon=True).start()
        pipe.send([("ready", self._listener.address)])
        line = Line(self._kernel, pipe, partial(self._mesh.hear, 0), self._kernel.stop, Link())
        self._mesh.peers[0].reach(lambda: line)

    def serve(self) -> None:
        """Until the pipe ends."""
        with rarely():
            self._kernel.run()

    def _connect(self, peer: Peer, address: Any) -> Line:
        pipe = Client(address, authkey=self._order.key)
        pipe.send(self._order.number)
        return Line(self._kernel, pipe, lambda message: None, bool, Link())

    def _accept(self) -> None:
        while True:
            with suppress(OSError, EOFError, AuthenticationError):
                pipe = self._listener.accept()
                self._kernel.post(self._heard_of, pipe, pipe.recv())

    def _heard_of(self, pipe: Connection, number: int) -> None:
        Line(self._kernel, pipe, partial(self._mesh.hear, number), bool, Link())


def _import_program(order: Order) -> None:
    global importing
    importing = True
    sys.path.extend(path for path in order.path if path not in sys.path)
    spawn.prepare(dict(order.main))
    importing = False


def _beside(pipe: Connection) -> Any:
    """Where to be reached: on the network that the pipe comes from, else by a name that leaves no file."""
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        if end.family == socket.AF_INET:
            return (end.getsockname()[0], 0)
    return f"\0lightwork-{token_hex(16)}" if sys.platform == "linux" else None


def run(pipe: Connection) -> None:
    """Be what the other end of the pipe orders, until it is gone."""
    try:
        host = Host(pipe, pipe.recv())
    except Exception as error:
        pipe.send([("failed", f"{type(error).__name__}: {error}")])
        raise
    host.serve()


def main() -> None:
    outlive_signals()
    run(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
