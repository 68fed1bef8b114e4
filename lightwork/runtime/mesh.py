"""The processes of one program, as one of them sees the others: each sends to each, nothing goes by a third.

What one tick says to a place goes there in one batch: a list of (what, items), in the order of saying, equal
neighbours together. See `answers` for who holds what.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from secrets import token_bytes
from typing import TYPE_CHECKING, Any

from lightwork.errors import HostLostError
from lightwork.runtime.answers import Answer, Held, Key, Owned
from lightwork.runtime.calls import Call
from lightwork.runtime.futures import Future
from lightwork.runtime.line import Line
from lightwork.runtime.packing import portable, unpack
from lightwork.runtime.peer import DROP, LEND, TELL, VALUE, Peer
from lightwork.runtime.table import KEEPER_ID, KEEPERS, Table

if TYPE_CHECKING:
    from lightwork.runtime.actors import Actors
    from lightwork.runtime.kernel import Kernel
    from lightwork.runtime.places import Desk


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
        self.numbers = count(life << 40)  # not those that it had in another life
        self._take = (
            self._asked,
            self._told,
            self._value,
            self._error,
            self._want,
            self._lend,
            self._drop,
            self._cancel,
        )

    def desk(self, place: int) -> Desk:
        return self.actors.desks[place]

    # -- handles of futures

    def handle(self, future: Future, to: int) -> tuple[tuple[int, int, int], Callable[[], object]]:
        """(owner, key) of a pending future, for a place; and what tells its owner so."""
        if isinstance(future, Answer) and future.state != "awaited" and not future.wanted:
            if future.state == "here":
                self.hold(future)
            caller, number = self.full(future.key)
            owner = future.peer
            return (owner.number, caller, number), partial(owner.say, LEND, (caller, number, to))
        key = self._keys.get(future)
        if key is None:
            key = self._keys[future] = (self.number, next(self.numbers))
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
        answer = self.awaited.get(key) or (None if held is None else held())
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

    def refuse(self, key: Key, error: Exception) -> None:
        """A message could not be sent."""
        held = self._held.pop(key, None)
        answer = self.awaited.pop(key, None) or (None if held is None else held())
        if answer is not None:
            answer.count = 0
            answer.end(None, error)

    def want(self, answer: Answer) -> None:
        held = self._held.pop(answer.key, None)
        if held is not None:
            answer.count = held.count
        answer.state = "awaited"
        self.awaited[answer.key] = answer

    def release(self, answer: Answer) -> None:
        if answer.count:
            answer.peer.say(DROP, (*self.full(answer.key), answer.count))
            answer.count = 0

    def _gone(self, held: Held) -> None:
        self.kernel.post(self._forget, held)  # whichever thread collects garbage

    def _forget(self, held: Held) -> None:
        if self._held.get(held.key) is held:
            del self._held[held.key]
            held.peer.say(DROP, (*self.full(held.key), held.count))

    def full(self, key: Key) -> tuple[int, int]:
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
            self.kernel.unobserved(future)

    def report(self, future: Future) -> None:
        """Nobody has seen its error, nor will."""
        if isinstance(future.error, Exception):
            future.error.add_note(f"in {future.name} at {self.actors.places[self.number].name} {self.number}")
            self.complain(future.error)

    def complain(self, error: Exception) -> None:
        """Report an error that is nobody's, where the places were made."""
        if self.number == 0:
            KEEPERS(self.table, KEEPER_ID).tell("failed", error)
        else:
            self.peers[0].say(TELL, (KEEPER_ID, "failed", (portable(error),)))

    # -- what others say

    def hear(self, place: int, data: bytes) -> None:
        """A batch."""
        self.peers[place].heard_bytes += len(data)
        for what, items in unpack(self, data):
            self._take[what](place, items)

    def _asked(self, place: int, items: list[tuple[int, str, tuple[Any, ...], int, bool]]) -> None:
        attempt, owned, say = self.table.attempt, self._owned, self.peers[place].say
        for id, method, args, number, wanted in items:
            try:
                value = attempt(id, method, args)
            except Exception as error:
                call = Call(self.kernel, self.table, id, method, args)
                call.end(None, error)
            else:
                if isinstance(value, Call):
                    call = value
                elif wanted and (place, number) not in owned:
                    say(VALUE, (number, value))
                    continue
                else:
                    call = Call(self.kernel, self.table, id, method, args)
                    call.end(value, None)
            mine = self._owned_by(place, number)
            if wanted:
                mine.wants.append(place)
            else:
                mine.hold(place, 1)
            self._own(mine, call)

    def _told(self, place: int, items: list[tuple[int, str, tuple[Any, ...]]]) -> None:
        for id, method, args in items:
            self.table.deliver(Call(self.kernel, self.table, id, method, args))

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
        for caller, number, handles in items:
            owned = self._owned_by(caller, number)
            owned.hold(place, -handles)
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
        peer.losses += 1
        peer.lost = HostLostError(f"place {number} {why}", fix="restore its actors from what was saved")
        held = [answer for each in self._held.values() if (answer := each()) is not None]
        for answer in [*self.awaited.values(), *held, *peer.clear()]:
            if answer.peer is peer:
                self.awaited.pop(answer.key, None)
                self._held.pop(answer.key, None)
                if not answer.done:
                    answer.end(None, peer.lost)
        for owned in [*self._owned.values()]:
            owned.holders.pop(number, None)
            owned.wants = [place for place in owned.wants if place != number]
            if owned.key[0] == number and (owned.future is None or owned.future not in self._keys):
                self._own(owned, Future(self.kernel))  # its message will not come any more
                assert owned.future is not None
                owned.future.end(None, peer.lost)
            self._let_go(owned)
