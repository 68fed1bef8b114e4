"""Another process of the program, as one of them speaks to it: what one tick says goes there in one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightwork.errors import HostLostError
from lightwork.runtime.answers import Answer, Key
from lightwork.runtime.futures import Future
from lightwork.runtime.line import Line
from lightwork.runtime.mailbox import BITS
from lightwork.runtime.packing import pack, portable
from lightwork.runtime.refs import Ref
from lightwork.runtime.table import KEEPER_ID, Tally

if TYPE_CHECKING:
    from lightwork.runtime.mesh import Mesh

ASK, TELL, VALUE, ERROR, WANT, LEND, DROP, CANCEL = range(8)
"""What is said: see `Mesh._take` for what each is followed by."""


class Peer:
    """Another process: the way to its actors. lost: why it is not there, if it is not."""

    def __init__(self, mesh: Mesh, number: int) -> None:
        self.number = number
        self.messages = 0
        self.bytes = self.heard_bytes = 0
        self.lost: HostLostError | None = None
        self.losses = 0
        self.line: Line | None = None
        self.outbox: list[tuple[int, list[Any]]] = []
        self.told = Tally(0, 0, 0, 0)
        self._mesh = mesh
        self._numbers = mesh.numbers
        self._kernel = mesh.kernel
        self._open: Callable[[], Line] | None = None
        self._what = -1
        self._items: list[Any] = []
        self._created = 0
        self._reached = False

    # -- what a Ref uses

    def tally(self) -> Tally:
        """As its last beat told."""
        return self.told

    def create(self, cls: type, args: tuple[Any, ...], key: str | int) -> int:
        id = self._created << BITS | self._mesh.number
        self._created += 1
        self.say(TELL, (KEEPER_ID, "create", (id, (cls, key, *args))))
        return id

    def ask(self, ref: Ref, method: str, args: tuple[Any, ...]) -> Future:
        answer = Answer(self._kernel, self, next(self._numbers), ref.id, method, args)
        if self._what == ASK:  # as `say`, for the most frequent
            self._items.append(answer)
        elif self.lost is None:
            self.say(ASK, answer)
        else:
            answer.end(None, self.lost)
        return answer

    def tell(self, ref: Ref, method: str, args: tuple[Any, ...]) -> None:
        if self.lost is not None:
            self.ask(ref, method, args)  # which fails, and nobody waits for it
            return
        self.say(TELL, (ref.id, method, args))

    # -- what is said

    def clear(self) -> list[Answer]:
        """Nobody hears what is still to be said; returns the futures of what was asked."""
        asked = [answer for what, items in self.outbox if what == ASK for answer in items]
        self.line = self._open = None
        self.outbox, self._items, self._what = [], [], -1
        return asked

    def say(self, what: int, item: Any) -> None:
        """Add to this tick's batch."""
        if what == self._what:
            self._items.append(item)
            return
        if self.lost is not None:
            return
        if not self.outbox:
            self._kernel.call_soon(self.flush)
        self._what = what
        self._items = [item]
        self.outbox.append((what, self._items))

    def answer(self, key: Key, value: Any, error: BaseException | None) -> None:
        if error is None:
            self.say(VALUE, (key, value))
        else:
            self.say(ERROR, (key, portable(error)))

    def want(self, answer: Answer) -> None:
        self._mesh.want(answer)
        self.say(WANT, self._mesh.full(answer.key))

    def cancelled(self, answer: Answer) -> None:
        mesh = self._mesh
        if answer.state == "there":
            mesh.want(answer)
        if answer.state == "awaited":
            mesh.awaited.pop(answer.key, None)
            self.say(CANCEL, mesh.full(answer.key))
            mesh.release(answer)

    def reach(self, connect: Callable[[], Line]) -> None:
        """From now on there is a way, opened when there is something to say."""
        self._open = connect
        self.line = None
        if self._reached and self._created:  # in another life
            self.say(TELL, (KEEPER_ID, "forget", (self._mesh.number, self._created)))
        self._reached = True
        if self.outbox:
            self._kernel.call_soon(self.flush)

    def flush(self) -> None:
        """Send the batch, if the other one is there."""
        if not self.outbox or self.lost is not None:
            return
        if self.line is None:
            if self._open is None:
                return
            try:
                self.line = self._open()
            except OSError:
                return  # who made the places will say that it is lost
        groups, self.outbox, self._items, self._what = self.outbox, [], [], -1
        batch = [(what, self._requests(items) if what == ASK else items) for what, items in groups]
        self.messages += sum(len(items) for what, items in batch if what in (ASK, TELL))
        try:
            data = pack(self._mesh, self.number, batch)
        except Exception:
            for what, items in batch:
                for item in items:
                    self._send_alone(what, item)
        else:
            self.bytes += len(data)
            self.line.send(data)

    def _requests(self, answers: list[Answer]) -> list[tuple[int, str, tuple[Any, ...], Key, bool]]:
        mesh = self._mesh
        awaited = mesh.awaited
        requests = []
        for answer in answers:
            wanted = False
            if answer.state == "here":
                if answer.done:
                    continue  # cancelled, and nobody else has heard of it
                wanted = answer._waiters is not None
                if wanted:
                    answer.state = "awaited"
                    awaited[answer.key] = answer
                else:
                    mesh.hold(answer)
            requests.append((answer.id, answer.method, answer.args, answer.key, wanted))
            answer.args = ()
        return requests

    def _send_alone(self, what: int, item: Any) -> None:
        """One of a batch of which something cannot be sent: only that fails."""
        assert self.line is not None
        try:
            data = pack(self._mesh, self.number, [(what, [item])])
        except Exception as error:
            self._refuse(what, item, error)
        else:
            self.bytes += len(data)
            self.line.send(data)

    def _refuse(self, what: int, item: Any, error: Exception) -> None:
        if what == ASK:
            self._mesh.refuse(item[3], error)
        elif what == VALUE:
            self.say(ERROR, (item[0], error))
        else:
            self._mesh.complain(error)
