"""What the places have in common whose actors live in a process of their own (`lightwork.runtime.host`)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any

from lightwork.errors import LightworkError, SpecError
from lightwork.runtime import host
from lightwork.runtime.child import Child
from lightwork.runtime.clock import WallClock
from lightwork.runtime.futures import Future
from lightwork.runtime.heartbeat import Heartbeat
from lightwork.runtime.host import Order, program
from lightwork.runtime.line import Line, Link
from lightwork.runtime.peer import Peer
from lightwork.runtime.table import KEEPER_ID, KEEPERS

if TYPE_CHECKING:
    from lightwork.runtime.actors import Actors

MODULE = "lightwork.runtime.host"


class Hosted:
    """begin: starts the module's process with an order."""

    def __init__(self, actors: Actors, number: int, begin: Callable[[Order], Child]) -> None:
        clock = actors.kernel.clock
        if not isinstance(clock, WallClock):
            raise SpecError(
                f"place {number} is a process, and the kernel's clock a virtual one",
                expected="Kernel(WallClock()), or simulated places",
            )
        if host.importing:
            raise SpecError(
                "a program that is imported by its places starts places",
                expected="nothing done by importing it",
                fix='if __name__ == "__main__": main()',
            )
        self._actors, self._number, self._begin = actors, number, begin
        self._kernel = actors.kernel
        self._clock = clock
        self._life = 0
        self._closed = False
        self._child: Child | None = None
        self._line: Line | None = None
        self._heartbeat: Heartbeat | None = None
        self.peer = actors.mesh.peers[number] = Peer(actors.mesh, number)
        self._start()

    @property
    def pid(self) -> int:
        """Of its process; 0 while there is none."""
        return self._child.process.pid if self._child is not None else 0

    def restart(self) -> None:
        """Start another process if it is lost."""
        if self.peer.lost is not None:
            self._start()

    def _start(self) -> None:
        """Start its process; what is said meanwhile waits."""
        actors = self._actors
        order = Order(
            number=self._number,
            names=tuple(place.name for place in actors.places),
            life=self._life,
            seed=self._kernel.seed,
            moment=self._clock.moment(),
            key=actors.mesh.key,
            path=tuple(sys.path),
            main=program(),
        )
        self._life += 1
        self.peer.lost = None
        self._starting = Thread(target=self._wait, args=(order,), name="lightwork-start", daemon=True)
        self._starting.start()

    def _wait(self, order: Order) -> None:
        """On a thread: a process takes a second to start."""
        try:
            child = self._child = self._begin(order)
            if self._closed:
                child.kill()
                return
            self._kernel.post(self._ready, order.life + 1, child, child.wait())
        except (LightworkError, OSError) as error:
            self._kernel.post(self._lost, order.life, str(error))

    def _ready(self, life: int, child: Child, address: Any) -> None:
        if self.peer.lost is not None or life != self._life:  # it was killed before it was there
            child.kill()
            return
        line = self._line = Line(
            self._kernel,
            child.pipe,
            partial(self._hear, self._number),
            lambda: self._kernel.post(self._ended, life),
            Link(),
        )
        self.peer.reach(lambda: line)
        self._heartbeat = Heartbeat(self._kernel, self._beat, self._hung)
        self._actors.mesh.introduce(self._number, address)

    def _hear(self, number: int, data: bytes) -> None:
        if self._heartbeat is not None:
            self._heartbeat.heard()
        self._actors.mesh.hear(number, data)

    def _beat(self) -> None:
        KEEPERS(self.peer, KEEPER_ID).tally().add_callback(self._answered)

    def _answered(self, answer: Future) -> None:
        if answer.error is None:
            self.peer.told = answer.value

    def _hung(self, why: str) -> None:
        self._lost(self._life - 1, why)

    def _ended(self, life: int) -> None:
        child = self._child
        if life == self._life and child is not None:
            self._lost(life - 1, child.end())

    def _lost(self, life: int, why: str) -> None:
        if life + 1 == self._life and self.peer.lost is None:
            self._stop()
            self._actors.mesh.part(self._number, why)

    def kill(self) -> None:
        """Lose it, now."""
        self._lost(self._life - 1, "was killed")

    def _stop(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None
        if self._line is not None:
            self._line.close()
            self._line = None
        child, self._child = self._child, None
        if child is not None:
            child.kill()

    def close(self) -> None:
        """End it; what its actors do is not waited for."""
        self._closed = True
        self._stop()
        self._starting.join()
        if self.peer.lost is None:
            self._actors.mesh.lose(self._number, "has been closed")
