"""The actors of one place in this process: who is idle, who is busy, and what waits for whom.

An entry is, of an actor that was never asked anything, the tuple (class, key, arguments); of an idle one, the
actor; of a busy or paused one, a `Mailbox` that holds it; of one that was killed, None. Ids are numbered by
whoever creates, so a Ref is there before the actor's place has heard of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NamedTuple

from lightwork.errors import ActorLostError, HostLostError
from lightwork.runtime.calls import Call
from lightwork.runtime.futures import Future
from lightwork.runtime.mailbox import BITS, MAX_PLACES, Mailbox
from lightwork.runtime.refs import Here, Ref
from lightwork.runtime.states import Saved, restore, save
from lightwork.runtime.trace import Span

if TYPE_CHECKING:
    from lightwork.runtime.actors import Actors
    from lightwork.runtime.kernel import Kernel

_LAST = MAX_PLACES
KEEPER_ID = _LAST
"""Of its keeper: the only one in the last row."""


class Tally(NamedTuple):
    """How many actors are idle and busy, how many of all are paused; how many messages wait for them."""

    idle: int
    busy: int
    paused: int
    waiting: int


class Table:
    """number: of the place. The way to its actors for all who are in this process."""

    def __init__(self, actors: Actors, number: int) -> None:
        self.actors = actors
        self.kernel: Kernel = actors.kernel
        self.number = number
        self.lost: HostLostError | None = None
        self.messages = 0
        self.bytes = 0
        self.rows: list[list[Any]] = [[] for _ in range(MAX_PLACES + 1)]
        self._lost = self._busy = self._paused = self._waiting = 0
        self._ready = self.kernel.call_soon
        self._deliver = self.deliver
        self.rows[_LAST].append(Keeper(self))

    # -- what a Ref uses

    def create(self, cls: type, args: tuple[Any, ...], key: str | int) -> int:
        """Make an entry; returns its id."""
        row = self.rows[self.actors.number]
        row.append((cls, key, *args))
        return (len(row) - 1) << BITS | self.actors.number

    def ask(self, ref: Ref, method: str, *args: Any) -> Future:
        self.messages += 1
        call = Call(self.kernel, self, ref.id, method, args, self.number)
        self._ready(self._deliver, call)
        return call

    def tell(self, ref: Ref, method: str, *args: Any) -> None:
        self.ask(ref, method, *args)

    # -- one message

    def deliver(self, call: Call) -> None:
        """Let the actor do what a message asks, now or when its turn comes."""
        if call.done:
            return  # cancelled before it began
        id = call.id
        row = self.rows[id & _LAST]
        try:
            try:
                actor = row[id >> BITS]
            except IndexError:
                actor = None
            kind = type(actor)
            if kind is tuple:
                actor = row[id >> BITS] = self._construct(id, *actor)
            elif kind is Mailbox:
                if actor.waiting is None:
                    actor.waiting = deque()
                actor.waiting.append(call)
                self._waiting += 1
                return
            elif actor is None:
                raise self.lost_error(id)
            value = getattr(actor, call.method)(*call.args)
        except Exception as error:
            call.end(None, error)
            return
        if type(value) is CoroutineType:
            row[id >> BITS] = Mailbox(actor, call)
            self._busy += 1
            self.begin(call, value)
        else:
            if self.kernel.trace is not None:
                self._record(call, actor, self.kernel.now())
            call.end(value, None)

    def begin(self, call: Call, coro: Coroutine[Any, Any, Any]) -> None:
        """Run an async method."""
        if self.kernel.trace is not None:
            self._entry(call.id).since_s = self.kernel.now()
        call.begin(coro)

    def ended(self, call: Call) -> None:
        """An async method is over: the next message."""
        id = call.id
        mailbox = self._entry(id)
        if type(mailbox) is not Mailbox or mailbox.call is not call:
            return  # the actor was killed meanwhile
        mailbox.call = None
        self._busy -= 1
        if self.kernel.trace is not None:
            self._record(call, mailbox.actor, mailbox.since_s)
        if not mailbox.paused:
            self._go_on(id, mailbox)

    def _go_on(self, id: int, mailbox: Mailbox) -> None:
        """Empty the mailbox up to the next async method; throw it away if that was all."""
        row = self.rows[id & _LAST]
        row[id >> BITS] = mailbox.actor
        waiting = mailbox.waiting
        while waiting:
            call = waiting.popleft()
            self._waiting -= 1
            self.deliver(call)
            entry = row[id >> BITS]
            if type(entry) is Mailbox:
                entry.waiting = waiting
                return
            if entry is None:
                self._fail(id, waiting)

    def _record(self, call: Call, actor: Any, start_s: float) -> None:
        assert self.kernel.trace is not None
        name = f"{type(actor).__name__}.{call.method}"
        place = self.actors.places[self.number].name
        self.kernel.trace.add(Span(place, "call", name, start_s, self.kernel.now(), peer=str(call.id)))

    def _construct(self, id: int, cls: type, key: str | int, *args: Any) -> Any:
        actor = cls(*args)
        begin = getattr(cls, "begin", None)
        if begin is not None:
            begin(actor, self.here(id, cls, key))
        return actor

    def here(self, id: int, cls: type, key: str | int, drawn: Any = None) -> Here:
        name = key if isinstance(key, str) else f"{cls.__name__} {key}"
        return Here(self.actors, Ref(self, cls, id), name, drawn)

    # -- what monitors ask

    def kill(self, id: int) -> None:
        """Its futures fail. No-op if it is lost already."""
        entry = self._entry(id)
        if entry is None:
            return
        self.rows[id & _LAST][id >> BITS] = None
        self._lost += 1
        if type(entry) is Mailbox:
            self._paused -= entry.paused
            if entry.call is not None:
                self._busy -= 1
                entry.call.cancel()
            self._fail(id, entry.waiting)

    def pause(self, id: int) -> None:
        row, entry = self.rows[id & _LAST], self._entry(id)
        if entry is None:
            raise self.lost_error(id)
        if type(entry) is not Mailbox:
            if type(entry) is tuple:
                entry = self._construct(id, *entry)
            entry = row[id >> BITS] = Mailbox(entry, None)
        self._paused += not entry.paused
        entry.paused = True

    def resume(self, id: int) -> None:
        mailbox = self._entry(id)
        if type(mailbox) is Mailbox and mailbox.paused:
            mailbox.paused = False
            self._paused -= 1
            if mailbox.call is None:
                self._go_on(id, mailbox)

    def tally(self) -> Tally:
        there = sum(map(len, self.rows[:_LAST])) - self._lost
        return Tally(there - self._busy, self._busy, self._paused, self._waiting)

    def runs(self, call: Call) -> bool:
        """Whether an actor still does it."""
        mailbox = self._entry(call.id)
        return type(mailbox) is Mailbox and mailbox.call is call

    def _entry(self, id: int) -> Any:
        row = self.rows[id & _LAST]
        return row[id >> BITS] if id >> BITS < len(row) else None

    def lost_error(self, id: int) -> ActorLostError:
        return ActorLostError(f"{self.describe(id)} is not there any more", fix="create another one")

    def describe(self, id: int) -> str:
        """An actor in words."""
        entry = self._entry(id)
        if type(entry) is tuple:
            entry = entry[0]
        elif type(entry) is Mailbox:
            entry = type(entry.actor)
        kind = "actor" if entry is None else (entry if isinstance(entry, type) else type(entry)).__name__
        return f"{kind} {id >> BITS}"

    def _fail(self, id: int, waiting: deque[Call] | None) -> None:
        while waiting:
            call = waiting.popleft()
            self._waiting -= 1
            if not call.done:
                call.end(None, self.lost_error(id))

    # -- what another process, or a file, makes here

    def put(self, id: int, entry: Any) -> None:
        """Make an entry of this id, in place of the one there is: the tuple of an actor to be constructed, or
        an actor."""
        if type(self._entry(id)) is Mailbox:
            self.kill(id)
        row = self.rows[id & _LAST]
        missing = (id >> BITS) + 1 - len(row)
        if missing > 0:
            row.extend([None] * missing)
            self._lost += missing
        if row[id >> BITS] is None:
            self._lost -= 1
        row[id >> BITS] = entry


class Keeper:
    """Of one place: an actor that its other actors are managed through, so that this has its turn, too."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def kill(self, id: int) -> None:
        self._table.kill(id)

    def pause(self, id: int) -> None:
        self._table.pause(id)

    def resume(self, id: int) -> None:
        self._table.resume(id)

    def tally(self) -> Tally:
        return self._table.tally()

    def create(self, id: int, entry: tuple[Any, ...]) -> None:
        self._table.put(id, entry)

    def save(self) -> list[Saved]:
        return save(self._table)

    def restore(self, saved: list[Saved]) -> None:
        restore(self._table, saved)

    def meet(self, number: int, address: Any) -> None:
        self._table.actors.mesh.meet(number, address)

    def lose(self, number: int, why: str) -> None:
        self._table.actors.mesh.lose(number, why)

    def failed(self, error: Exception) -> None:
        """Nobody waited for this error, elsewhere: nobody waits for it here, either, and it is reported."""
        raise error
