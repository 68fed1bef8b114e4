"""A host and its link on the virtual clock: what it takes to send, to take up a message and to keep a thread.

Actors are objects of this process and run as everywhere; only when they are asked, and when the answer is
there, is as late as the host says. A message between two actors of one host passes no link.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from lightwork.errors import SpecError
from lightwork.runtime.calls import Call
from lightwork.runtime.futures import Future
from lightwork.runtime.resources import Fifo
from lightwork.runtime.simulated import nbytes
from lightwork.runtime.table import KEEPER_ID, Table

if TYPE_CHECKING:
    from lightwork.runtime.actors import Actors
    from lightwork.runtime.refs import Ref


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Simulated:
    """threads: calls that the host has under way at a time, those that only wait included, as in a server
    with a thread for each (where calls that wait for others of the same host can wait for ever); None: no
    call holds one. message_s: of one of `cores`, to take up a message.

    latency_s, bytes_per_s: of the link, each way; message_bytes: of a message or an answer, beside arrays.
    """

    name: str = "host"
    threads: int | None = None
    cores: int = 1
    message_s: float = 0.0
    latency_s: float = 0.0
    bytes_per_s: float = inf
    message_bytes: int = 100

    def start(self, actors: Actors, number: int) -> SimulatedTable:
        if not actors.kernel.clock.virtual:
            raise SpecError(f"{self.name} is simulated, and the clock is not", expected="Kernel()")
        return SimulatedTable(actors, number, self)

    def restart(self) -> None:
        """It is never lost."""

    def kill(self) -> None:
        """It has no process of its own."""

    def close(self) -> None:
        """Its actors end with this process."""


class SimulatedCall(Call):
    """One whose result takes its time to come back; the actor is free meanwhile. beside: of the same host."""

    __slots__ = ("beside",)
    beside: bool

    def answer(self, value: Any, error: BaseException | None) -> None:
        assert isinstance(self.table, SimulatedTable)
        back_s = self.kernel.now() if self.beside else self.table.back(value)
        if back_s > self.kernel.now():
            self.kernel.at(back_s, super().answer, value, error)
        else:
            super().answer(value, error)


class SimulatedTable(Table):
    """The actors of such a host."""

    busy = SimulatedCall

    def __init__(self, actors: Actors, number: int, host: Simulated) -> None:
        super().__init__(actors, number)
        self._host = host
        self._cores = Fifo(f"{host.name} cores", host.cores)
        self._in, self._out = Fifo(f"{host.name} in"), Fifo(f"{host.name} out")
        self._threads = host.threads
        self._queue: deque[Call] = deque()
        self._deliver = self._arrive

    def ask(self, ref: Ref, method: str, args: tuple[Any, ...]) -> Future:
        self.messages += 1
        kernel = self.kernel
        current = kernel.current
        sender = current.table if isinstance(current, Call) else None
        call = SimulatedCall(kernel, self, ref.id, method, args)
        call.beside = sender is self
        at_s = kernel.now()
        if sender is not self:
            at_s = self._pass(self._in, at_s, args)
        at_s = self._cores.reserve(at_s, self._host.message_s)
        if at_s > kernel.now():
            kernel.at(at_s, self._deliver, call)
        else:
            kernel.call_soon(self._deliver, call)
        return call

    def _pass(self, link: Fifo, at_s: float, x: Any) -> float:
        """When a message has passed a link that it comes to at a time."""
        host = self._host
        num_bytes = host.message_bytes + nbytes(x)
        self.bytes += num_bytes
        return link.reserve(at_s, num_bytes / host.bytes_per_s) + host.latency_s

    def _arrive(self, call: Call) -> None:
        """A message that no thread is free for waits, and so do all that come after it."""
        if self._threads is not None and (self._threads == 0 or self._queue) and call.id != KEEPER_ID:
            self._queue.append(call)
        else:
            self.deliver(call)

    def deliver(self, call: Call) -> None:
        kernel = self.kernel
        before, kernel.current = kernel.current, call
        super().deliver(call)
        kernel.current = before

    def begin(self, call: Call, actor: Any, coro: Coroutine[Any, Any, Any]) -> None:
        if self._threads is not None:
            self._threads -= 1
        super().begin(call, actor, coro)

    def ended(self, call: Call) -> None:
        if self._threads is not None:
            self._threads += 1
            if self._queue:
                self.kernel.call_soon(self._drain)
        super().ended(call)

    def _drain(self) -> None:
        while self._threads and self._queue:
            self.deliver(self._queue.popleft())

    def back(self, value: Any) -> float:
        """When an answer has passed the link."""
        return self._pass(self._out, self.kernel.now(), value)
