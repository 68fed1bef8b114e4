"""The processes of one program, as one of them sees the others: each sends to each, nothing goes by a third.

What one tick says to a place goes there in one batch: a list of (what, items), in the order of saying, equal
neighbours together. See `answers` for who holds what.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from secrets import token_bytes
from typing import TYPE_CHECKING, Any

from lightwork.errors import HostLostError
from lightwork.runtime.answers import Answer, Held, Key, Owned
from lightwork.runtime.calls import Call
from lightwork.runtime.futures import Future
from lightwork.runtime.line import Line
from lightwork.runtime.mailbox import BITS
from lightwork.runtime.packing import pack, portable, unpack
from lightwork.runtime.refs import Ref
from lightwork.runtime.table import KEEPER_ID, Keeper, Table, Tally

if TYPE_CHECKING:
    from lightwork.runtime.actors import Actors
    from lightwork.runtime.kernel import Kernel
    from lightwork.runtime.places import Desk

ASK, TELL, VALUE, ERROR, WANT, LEND, DROP, CANCEL = range(8)


class Mesh:
    """table: of the actors here. connect: makes a line to an address, for a peer that has none yet."""

    def __init__(
        self,
        actors: Actors,
        table: Table,
        connect: Callable[[Peer, Any], Line] | None = None,
        *,
        life: int = 0,
    ) -> None:
        self.actors = actors
        self.kernel: Kernel = actors.kernel
        self.number = table.number
        self.table = table
        self.key = token_bytes(32)
        self.peers: dict[int, Peer] = {}
        self.awaited: dict[Key, Answer] = {}
        self._connect = connect
        self._held: dict[Key, Held] = {}
        self._owned: dict[tuple[int, int], Owned] = {}
        self._keys: dict[Future, tuple[int, int]] = {}
        self._addresses: dict[int, Any] = {}
        self._last = life << 40  # not the numbers that it had in another life
        self._take = (
            self._asked, self._told, self._value, self._error, self._want, self._lend, self._drop, self._cancel
        )  # fmt: skip

    def desk(self, place: int) -> Desk:
        return self.actors.desks[place]

    def next_number(self) -> int:
        self._last += 1
        return self._last

    # -- handles of futures

    def handle(self, future: Future, to: int) -> tuple[tuple[int, int, int], Callable[[], object]]:
        """(owner, key) of a pending future, for a place; and what tells its owner so."""
        if isinstance(future, Answer) and future.state != "awaited" and not future.wanted:
            if future.state == "here":
                self.hold(future)
            caller, number = self._full(future.key)
            owner = future.peer
            return (owner.number, caller, number), partial(owner.say, LEND, (caller, number, to))
        key = self._keys.get(future)
        if key is None:
            key = self._keys[future] = (self.number, self.next_number())
            owned = self._owned[key] = Owned(key)
            self._own(owned, future)
        return (self.number, *key), partial(self._owned[key].hold, to, 1)

    def arrive(self, owner: int, caller: int, number: int) -> Future:
        """The future here of a handle."""
        if owner == self.number:
            owned = self._owned_by(caller, number)
            owned.hold(self.number, -1)
            if owned.future is None:  # its message is still on its way
                owned.future = Future(self.kernel, "an answer")
            return owned.future
        key: Key = number if caller == self.number else (caller, number)
        held = self._held.get(key)
        answer = self.awaited.get(key) or (held and held())
        if answer is None:
            answer = Answer(self.kernel, self.peers[owner], key)
            self.hold(answer)
            return answer
        if held is not None and held() is answer:
            held.count += 1
        else:
            answer.count += 1
        return answer

    def hold(self, answer: Answer) -> None:
        """Nobody waits for it here, so far."""
        answer.state = "there"
        answer.count = 1
        self._held[answer.key] = Held(answer, self._gone)

    def want(self, answer: Answer) -> None:
        held = self._held.pop(answer.key, None)
        if held is not None:
            answer.count = held.count
        answer.state = "awaited"
        self.awaited[answer.key] = answer

    def release(self, answer: Answer) -> None:
        if answer.count:
            answer.peer.say(DROP, (*self._full(answer.key), answer.count))
            answer.count = 0

    def _gone(self, held: Held) -> None:
        self.kernel.post(self._forget, held)  # whichever thread collects garbage

    def _forget(self, held: Held) -> None:
        if self._held.get(held.key) is held:
            del self._held[held.key]
            held.peer.say(DROP, (*self._full(held.key), held.count))

    def _full(self, key: Key) -> tuple[int, int]:
        return key if isinstance(key, tuple) else (self.number, key)

    # -- futures that others have handles of

    def _owned_by(self, caller: int, number: int) -> Owned:
        key = (caller, number)
        owned = self._owned.get(key)
        if owned is None:
            owned = self._owned[key] = Owned(key)
        return owned

    def _own(self, owned: Owned, future: Future) -> None:
        """Others may have wanted it before it was there."""
        promise, owned.future = owned.future, future
        self._keys[future] = owned.key
        future.add_callback(partial(self._done, owned, promise))

    def _done(self, owned: Owned, promise: Future | None, future: Future) -> None:
        if promise is not None and not promise.done:
            promise.end(future.value, future.error)
            owned.seen = True
        wants, owned.wants = owned.wants, []
        for place in wants:
            self._push(owned, place, future)
        caller, number = owned.key
        if future.error is not None and not owned.seen and caller in owned.holders and caller in self.peers:
            self.peers[caller].answer(number, None, future.error)  # it will want an error
        self._let_go(owned)

    def _push(self, owned: Owned, place: int, future: Future) -> None:
        caller, number = owned.key
        owned.seen = True
        key: Key = number if caller == place else (caller, number)
        self.peers[place].answer(key, future.value, future.error)

    def _let_go(self, owned: Owned) -> None:
        future = owned.future
        if owned.holders or owned.wants or future is None or not future.done:
            return
        self._owned.pop(owned.key, None)
        self._keys.pop(future, None)
        if future.error is not None and not owned.seen and isinstance(future, Call):
            owned.seen = True
            self.report(future)

    def report(self, call: Call) -> None:
        """Nobody has seen its error, nor will."""
        if self.number == 0:
            self.kernel.unobserved(call)
        elif isinstance(call.error, Exception):
            error = portable(call.error)
            error.add_note(f"in {call.name} of place {self.number}")
            self.peers[0].say(TELL, (KEEPER_ID, "failed", (error,)))

    # -- what others say

    def hear(self, place: int, data: bytes) -> None:
        """A batch."""
        self.peers[place].heard_bytes += len(data)
        for what, items in unpack(self, data):
            self._take[what](place, items)

    def _asked(self, place: int, items: list[tuple[int, str, tuple[Any, ...], int, bool]]) -> None:
        kernel, table, answer = self.kernel, self.table, self.peers[place].answer
        deliver, owned = table.deliver, self._owned
        for id, method, args, number, wanted in items:
            call = Call(kernel, table, id, method, args, place)
            deliver(call)
            if wanted and call.done and not (owned and (place, number) in owned):
                if call.error is not None:
                    kernel.observed(call)
                answer(number, call.value, call.error)
                continue
            mine = self._owned_by(place, number)
            if wanted:
                mine.wants.append(place)
            else:
                mine.hold(place, 1)
            self._own(mine, call)

    def _told(self, place: int, items: list[tuple[int, str, tuple[Any, ...]]]) -> None:
        for id, method, args in items:
            call = Call(self.kernel, self.table, id, method, args, place)
            self.table.deliver(call)
            if self.number != 0:
                call.add_callback(self._unheard)

    def _unheard(self, call: Future) -> None:
        if call.error is not None and isinstance(call, Call):
            self.report(call)

    def _value(self, place: int, items: list[tuple[Key, Any]]) -> None:
        awaited = self.awaited
        for key, value in items:
            answer = awaited.pop(key, None)
            if answer is not None:
                if answer.count:
                    self.release(answer)
                answer.end(value, None)

    def _error(self, place: int, items: list[tuple[Key, BaseException]]) -> None:
        for key, error in items:
            answer = self.awaited.pop(key, None)
            if answer is not None:
                self.release(answer)
                answer.end(None, error)
            elif (held := self._held.get(key)) is not None and (answer := held()) is not None:
                answer.peer.want(answer)

    def _want(self, place: int, items: list[tuple[int, int]]) -> None:
        for caller, number in items:
            owned = self._owned_by(caller, number)
            if owned.future is not None and owned.future.done:
                self._push(owned, place, owned.future)
            else:
                owned.wants.append(place)

    def _lend(self, place: int, items: list[tuple[int, int, int]]) -> None:
        for caller, number, to in items:
            owned = self._owned_by(caller, number)
            owned.hold(to, 1)
            self._let_go(owned)

    def _drop(self, place: int, items: list[tuple[int, int, int]]) -> None:
        for caller, number, count in items:
            owned = self._owned_by(caller, number)
            owned.hold(place, -count)
            self._let_go(owned)

    def _cancel(self, place: int, items: list[tuple[int, int]]) -> None:
        for key in items:
            owned = self._owned.get(key)
            if owned is not None and owned.future is not None:
                owned.seen = True
                owned.future.cancel()

    # -- who is there

    def introduce(self, number: int, address: Any) -> None:
        """A place has been started: it and all others are told of each other."""
        for other, known in self._addresses.items():
            self.peers[other].say(TELL, (KEEPER_ID, "meet", (number, address)))
            self.peers[number].say(TELL, (KEEPER_ID, "meet", (other, known)))
        self._addresses[number] = address

    def part(self, number: int, why: str) -> None:
        """A place is lost: all are told."""
        self._addresses.pop(number, None)
        self.lose(number, why)
        for other in self._addresses:
            self.peers[other].say(TELL, (KEEPER_ID, "lose", (number, why)))

    def meet(self, number: int, address: Any) -> None:
        """A place has an address, or a new one."""
        assert self._connect is not None, "who made the places has lines to all of them"
        peer = self.peers[number]
        peer.lost = None
        peer.reach(partial(self._connect, peer, address))

    def lose(self, number: int, why: str) -> None:
        """What a place owned, held and wanted is lost."""
        peer = self.peers[number]
        peer.lost = HostLostError(f"place {number} {why}", fix="restore its actors from what was saved")
        peer.clear()
        held = [answer for each in self._held.values() if (answer := each()) is not None]
        for answer in [*self.awaited.values(), *held]:
            if answer.peer is peer:
                self.awaited.pop(answer.key, None)
                self._held.pop(answer.key, None)
                if not answer.done:
                    answer.end(None, peer.lost)
        for owned in [*self._owned.values()]:
            owned.holders.pop(number, None)
            owned.wants = [place for place in owned.wants if place != number]
            self._let_go(owned)


class Peer:
    """Another process: the way to its actors. lost: why it is not there, if it is not."""

    def __init__(self, mesh: Mesh, number: int) -> None:
        self.number = number
        self.messages = 0
        self.bytes = self.heard_bytes = 0
        self.lost: HostLostError | None = None
        self.line: Line | None = None
        self.outbox: list[tuple[int, list[Any]]] = []
        self.told = Tally(0, 0, 0, 0)
        self._mesh = mesh
        self._kernel = mesh.kernel
        self._open: Callable[[], Line] | None = None
        self._what = -1
        self._items: list[Any] = []
        self._created = 0

    # -- what a Ref uses

    def tally(self) -> Tally:
        """As its last beat told."""
        return self.told

    def create(self, cls: type, args: tuple[Any, ...], key: str | int) -> int:
        id = self._created << BITS | self._mesh.number
        self._created += 1
        self.say(TELL, (KEEPER_ID, "create", (id, (cls, key, *args))))
        return id

    def ask(self, ref: Ref, method: str, *args: Any) -> Future:
        mesh = self._mesh
        mesh._last = number = mesh._last + 1
        answer = Answer(self._kernel, self, number, ref.id, method, args)
        if self.lost is None:
            self.messages += 1
            self.say(ASK, answer)
        else:
            answer.end(None, self.lost)
        return answer

    def tell(self, ref: Ref, method: str, *args: Any) -> None:
        if self.lost is not None:
            self.ask(ref, method, *args)  # which fails, and nobody waits for it
            return
        self.messages += 1
        self.say(TELL, (ref.id, method, args))

    def keeper(self) -> Ref:
        return Ref(self, Keeper, KEEPER_ID)

    # -- what is said

    def clear(self) -> None:
        """Nobody hears what is still to be said."""
        self.line = self._open = None
        self.outbox, self._what = [], -1

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
        self.say(WANT, self._mesh._full(answer.key))

    def cancelled(self, answer: Answer) -> None:
        mesh = self._mesh
        if answer.state == "there":
            mesh.want(answer)
        if answer.state == "awaited":
            mesh.awaited.pop(answer.key, None)
            self.say(CANCEL, mesh._full(answer.key))
            mesh.release(answer)

    def reach(self, connect: Callable[[], Line]) -> None:
        """From now on there is a way, opened when there is something to say."""
        self._open = connect
        self.line = None
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
        groups, self.outbox, self._what = self.outbox, [], -1
        batch = [
            (what, self._requests(items) if what == ASK else items)
            for what, items in groups
        ]
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
        mesh = self._mesh
        if what == VALUE:
            self.say(ERROR, (item[0], portable(error)))
        elif what == ASK:
            held = mesh._held.pop(item[3], None)
            answer = mesh.awaited.pop(item[3], None) or (held and held())
            if answer is not None:
                answer.count = 0
                answer.end(None, error)
        else:
            with suppress(KeyError):
                mesh.peers[0].say(TELL, (KEEPER_ID, "failed", (portable(error),)))
