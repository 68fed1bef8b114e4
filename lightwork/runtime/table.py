"""The actors of one place in this process: who is idle, who is busy, and what waits for whom.

An entry is, of an actor that was never asked anything, the tuple (class, key, arguments); of an idle one, the
actor; of a busy one, the `Call`; if more messages wait, or it is paused, a `Mailbox` that holds it; of one
that was killed, None. Ids are numbered by who creates: a Ref is there before its place has heard of it, and
what comes even before its actor waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NamedTuple

from lightwork.errors import ActorLostError, HostLostError
from lightwork.runtime.calls import Call
from lightwork.runtime.futures import Future
from lightwork.runtime.mailbox import ABSENT, BITS, MAX_PLACES, Mailbox
from lightwork.runtime.refs import Here, Ref, ref_to
from lightwork.runtime.states import Saved, restore, save
from lightwork.runtime.trace import Span, Trace
from lightwork.runtime.watch import Census, Described, Look, Page, State, describe, look, page

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
    """number: of the place. The way to its actors for all of this process. busy: the class of calls.

    held: if the place is paused, the messages that wait for that to end. census: once somebody looks.
    """

    busy = Call

    def __init__(self, actors: Actors, number: int) -> None:
        self.actors = actors
        self.kernel: Kernel = actors.kernel
        self.number = number
        self.lost: HostLostError | None = None
        self.losses = 0
        self.messages = 0
        self.bytes = 0
        self.rows: list[list[Any]] = [[] for _ in range(MAX_PLACES + 1)]
        self.whole = True
        self.held: deque[Call] | None = None
        self.census: Census | None = None
        self._forgotten: dict[int, int] = {}
        self._lost = self._busy = self._paused = self._waiting = 0
        self._ready = self.kernel.ready.append
        self._deliver = self.deliver
        self.rows[_LAST].append(Keeper(self))

    # -- what a Ref uses

    def create(self, cls: type, args: tuple[Any, ...], key: str | int) -> int:
        """Make an entry; returns its id."""
        row = self.rows[self.actors.number]
        row.append((cls, key, *args))
        return (len(row) - 1) << BITS | self.actors.number

    def ask(self, ref: Ref, method: str, args: tuple[Any, ...]) -> Future:
        self.messages += 1
        call = Call(self.kernel, self, ref.id, method, args)
        self._ready((self._deliver, (call,)))
        return call

    def tell(self, ref: Ref, method: str, args: tuple[Any, ...]) -> None:
        self.ask(ref, method, args)

    # -- one message

    def deliver(self, call: Call) -> None:
        """Let the actor do what a message asks, now or when its turn comes."""
        if call.done:
            return  # cancelled before it began
        id = call.id
        if self.held is not None and id != KEEPER_ID:
            self.held.append(call)
            return
        row = self.rows[id & _LAST]
        try:
            if id >> BITS >= len(row):
                self._expect(id)
            actor = row[id >> BITS]
            kind = type(actor)
            if kind is tuple:
                actor = row[id >> BITS] = self._construct(id, *actor)
            elif kind is Mailbox or kind is self.busy:
                self._append(id, call)
                return
            elif actor is None:
                raise self.lost_error(id)
            value = getattr(actor, call.method)(*call.args)
        except Exception as error:
            call.end(None, error)
            return
        if type(value) is CoroutineType:
            self.begin(call, actor, value)
        else:
            if (trace := self.kernel.trace) is not None and trace.calls:
                self._record(trace, call, actor, self.kernel.now())
            call.end(value, None)

    def attempt(self, id: int, method: str, args: tuple[Any, ...]) -> Any:
        """The value at once, of a plain method of an idle actor; else the Call, which may be done.

        Raises what the method raises. For messages of other processes, most of which need no Call.
        """
        row = self.rows[id & _LAST]
        actor = row[id >> BITS] if id >> BITS < len(row) else None
        kind = type(actor)
        resting = not (kind is tuple or kind is Mailbox or kind is self.busy or actor is None)
        if resting and self.kernel.trace is None and (self.held is None or id == KEEPER_ID):
            value = getattr(actor, method)(*args)
            if not (type(value) is CoroutineType or isinstance(value, Call)):
                return value
            call = self.busy(self.kernel, self, id, method, args)
            if type(value) is CoroutineType:
                self.begin(call, actor, value)
            else:
                call.end(value, None)
            return call
        call = self.busy(self.kernel, self, id, method, args)
        self.deliver(call)
        return call

    def begin(self, call: Call, actor: Any, coro: Coroutine[Any, Any, Any]) -> None:
        """Run an async method. Only who is waited for needs a mailbox."""
        self._busy += 1
        self.rows[call.id & _LAST][call.id >> BITS] = call
        call.begin(actor, coro)

    def _append(self, id: int, call: Call) -> None:
        mailbox = self._entry(id)
        if mailbox.waiting is None:
            mailbox.waiting = deque()
        mailbox.waiting.append(call)
        self._waiting += 1

    def ended(self, call: Call) -> None:
        """An async method is over: the next message."""
        id = call.id
        row = self.rows[id & _LAST]
        entry = row[id >> BITS] if id >> BITS < len(row) else None
        if entry is call:
            self._busy -= 1
            row[id >> BITS] = call.actor
            if (trace := self.kernel.trace) is not None and trace.calls:
                self._record(trace, call, call.actor, call.since_s)
        elif type(entry) is Mailbox and entry.call is call:
            self._busy -= 1
            entry.call = None
            if (trace := self.kernel.trace) is not None and trace.calls:
                self._record(trace, call, entry.actor, call.since_s)
            if not entry.paused:
                self._go_on(id, entry)
        call.actor = None

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
            if entry is None:
                self._fail(id, waiting)
            elif waiting and (type(entry) is Mailbox or type(entry) is self.busy):
                self._entry(id).waiting = waiting
                return

    def _construct(self, id: int, cls: type, key: str | int, *args: Any) -> Any:
        actor = cls(*args)
        begin = getattr(cls, "begin", None)
        if begin is not None:
            begin(actor, self.here(id, cls, key))
        return actor

    def here(self, id: int, cls: type, key: str | int, drawn: Any = None) -> Here:
        name = key if isinstance(key, str) else f"{cls.__name__} {key}"
        return Here(self.actors, ref_to(cls)(self, id), name, drawn)

    def _record(self, trace: Trace, call: Call, actor: Any, start_s: float) -> None:
        name = f"{type(actor).__name__}.{call.method}"
        place = self.actors.places[self.number].name
        trace.add(Span(place, "call", name, start_s, self.kernel.now(), peer=str(call.id)))

    # -- what monitors ask

    def kill(self, id: int) -> None:
        """Its futures fail. No-op if it is lost already."""
        entry = self._entry(id)
        if entry is None:
            return
        if self.census is not None:
            self.census.change(id, entry, -1)
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

    def hold(self) -> None:
        """Pause the place: all messages wait, what is done now goes on. No-op if it is paused."""
        if self.held is None:
            self.held = deque()

    def let_go(self) -> None:
        """Go on. Who was paused alone stays so."""
        held, self.held = self.held, None
        for call in held or ():
            self._deliver(call)

    def clear(self) -> None:
        """Kill all actors."""
        for creator, row in enumerate(self.rows[:_LAST]):
            for i, entry in enumerate(row):
                if entry is not None and not (type(entry) is Mailbox and entry.actor is ABSENT):
                    self.kill(i << BITS | creator)

    def tally(self) -> Tally:
        there = sum(map(len, self.rows[:_LAST])) - self._lost
        if self.held is not None:
            return Tally(there - self._busy, self._busy, there, self._waiting + len(self.held))
        return Tally(there - self._busy, self._busy, self._paused, self._waiting)

    def runs(self, call: Call) -> bool:
        """Whether an actor still does it."""
        entry = self._entry(call.id)
        return type(entry) is Mailbox and entry.call is call

    def _entry(self, id: int) -> Any:
        """As it is for all but those who are in a hurry: of a busy actor, a mailbox."""
        row = self.rows[id & _LAST]
        entry = row[id >> BITS] if id >> BITS < len(row) else None
        if type(entry) is self.busy:
            entry = row[id >> BITS] = Mailbox(entry.actor, entry)
        return entry

    def lost_error(self, id: int) -> ActorLostError:
        return ActorLostError(f"{self.describe(id)} is not there any more", fix="create another one")

    def describe(self, id: int) -> str:
        """An actor in words."""
        entry = self._entry(id)
        if type(entry) is tuple:
            entry = entry[0]
        elif type(entry) is Mailbox:
            entry = entry.actor
        cls = entry if isinstance(entry, type) else type(entry)
        return f"{'actor' if entry is None or entry is ABSENT else cls.__name__} {id >> BITS}"

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
        self._expect(id)
        row, before = self.rows[id & _LAST], self._entry(id)
        absent = type(before) is Mailbox and before.actor is ABSENT
        if type(before) is Mailbox and not absent:
            self.kill(id)
        if self.census is not None:
            self.census.change(id, self._entry(id), -1)
            self.census.change(id, entry, 1)
        self._lost -= self._entry(id) is None or absent
        if not absent:
            row[id >> BITS] = entry
        elif before.paused:
            before.actor = self._construct(id, *entry) if type(entry) is tuple else entry
        else:
            before.actor = entry
            self._go_on(id, before)

    def forget(self, creator: int, num: int) -> None:
        """Of so many that a place had created in another life of this one, only the restored are there."""
        self._forgotten[creator] = num
        if self.whole:
            row = self.rows[creator]
            for i in range(min(num, len(row))):
                if type(row[i]) is Mailbox and row[i].actor is ABSENT:
                    waiting, row[i] = row[i].waiting, None
                    self._fail(i << BITS | creator, waiting)
            self._lost += max(0, num - len(row))
            row.extend([None] * (num - len(row)))

    def made_whole(self) -> None:
        """All that was saved has been put back."""
        self.whole = True
        for creator, num in self._forgotten.items():
            self.forget(creator, num)

    def _expect(self, id: int) -> None:
        row = self.rows[id & _LAST]
        while len(row) <= id >> BITS:
            row.append(Mailbox(ABSENT, None))
            self._lost += 1


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

    def hold(self) -> None:
        self._table.hold()

    def let_go(self) -> None:
        self._table.let_go()

    def clear(self) -> None:
        self._table.clear()

    def tally(self) -> Tally:
        return self._table.tally()

    def look(self, top: int) -> Look:
        return look(self._table, top)

    def page(self, state: State | None, after: int | None, most: int) -> Page:
        return page(self._table, state, after, most)

    def describe(self, id: int) -> Described:
        return describe(self._table, id)

    def create(self, id: int, entry: tuple[Any, ...]) -> None:
        self._table.put(id, entry)

    def save(self) -> list[Saved]:
        return save(self._table)

    def restore(self, saved: list[Saved]) -> None:
        restore(self._table, saved)
        self._table.made_whole()

    def forget(self, creator: int, num: int) -> None:
        self._table.forget(creator, num)

    def meet(self, number: int, address: Any) -> None:
        self._table.actors.mesh.meet(number, address)

    def lose(self, number: int, why: str) -> None:
        self._table.actors.mesh.lose(number, why)

    def failed(self, error: Exception) -> None:
        """Nobody waited for this error, elsewhere: nobody waits for it here, either, and it is reported."""
        raise error


KEEPERS = ref_to(Keeper)
