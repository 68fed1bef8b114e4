"""Light actors: a million objects that take one message at a time, here or at other places.

    with Actors(kernel, places=[Process(), Process()]) as actors:
        players = [actors.create(Player, i, on=actors.places[1 + i % 2]) for i in range(1_000_000)]
        replies = kernel.run(kernel.gather(*(player.guess(3) for player in players)))

An actor is an object of any class whose methods are plain or `async def` and await futures and effects. Its
`Ref` has the same methods, each of which sends a message and returns the Future of its result. A message is
taken after all that the same sender sent before, when the one before it has been done. An actor costs its
own object and an entry in a table; a mailbox exists only while it is busy, a task only while an async method
runs. A slotted class takes the least memory; `garbage.rarely` keeps Python from looking through all of it.

A Future that is an argument reaches the method as a Future, pending or done; its value goes from where it is
made to where it is awaited, and to nobody between. An actor that raises fails that message's future only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lightwork.errors import SpecError
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.mailbox import MAX_PLACES
from lightwork.runtime.places import Desk, Place
from lightwork.runtime.places.local import Local
from lightwork.runtime.refs import Here, Ref, ref_to
from lightwork.runtime.states import resolve
from lightwork.runtime.table import KEEPER_ID, KEEPERS, Table

if TYPE_CHECKING:
    from lightwork.runtime.line import Line
    from lightwork.runtime.mesh import Mesh
    from lightwork.runtime.peer import Peer

__all__ = ["Actors", "Count", "Here", "Ref"]


class Count(NamedTuple):
    """Of one place. idle: those that were never asked anything, too. paused: of all. waiting: messages in
    mailboxes.

    messages, bytes: sent there from this process, ever; no bytes where nothing is packed.
    """

    place: str
    idle: int
    busy: int
    paused: int
    waiting: int
    messages: int
    bytes: int
    lost: bool


class Actors:
    """The actors of a program, at all its places: this process, which is places[0], and those given.

    Places that are processes need a kernel on a wall clock. Use it as a context manager, or `close` it.
    """

    def __init__(self, kernel: Kernel, places: Sequence[Place] = ()) -> None:
        self._begin(kernel, 0, [Local(), *places])
        for number, place in enumerate(places, 1):
            self.desks.append(place.start(self, number))

    @classmethod
    def among(
        cls,
        kernel: Kernel,
        number: int,
        names: Sequence[str],
        connect: Callable[[Peer, Any], Line],
        life: int,
    ) -> Actors:
        """As a process that is one of the places sees them. life: how often it has been started before."""
        from lightwork.runtime.mesh import Mesh
        from lightwork.runtime.peer import Peer
        from lightwork.runtime.places.elsewhere import Elsewhere

        actors = cls.__new__(cls)
        actors._begin(
            kernel, number, [Local(n) if i == number else Elsewhere(n) for i, n in enumerate(names)]
        )
        actors._table.whole = life == 0
        mesh = actors._mesh = Mesh(actors, actors._table, connect, life=life)
        for i in range(len(names)):
            if i != number:
                mesh.peers[i] = Peer(mesh, i)
        actors.desks = [mesh.peers.get(i, actors._table) for i in range(len(names))]
        return actors

    def _begin(self, kernel: Kernel, number: int, places: Sequence[Place]) -> None:
        if len(places) > MAX_PLACES:
            raise SpecError(f"{len(places)} places", expected=f"at most {MAX_PLACES}, this process included")
        self.kernel = kernel
        self.number = number
        self.places = places
        self._table = Table(self, number)
        self.desks: list[Desk] = [self._table]
        self._desk_of: dict[int, Desk] = {}
        self._mesh: Mesh | None = None
        self._created = 0

    @property
    def mesh(self) -> Mesh:
        """The other processes."""
        if self._mesh is None:
            from lightwork.runtime.mesh import Mesh

            self._mesh = Mesh(self, self._table)
        return self._mesh

    def create(self, cls: type, *args: Any, on: Place | None = None, key: str | None = None) -> Ref:
        """A new actor, constructed at its first message. on: one of `places`; None: this process.

        key: what its random stream depends on; by default its class and how many were created before by this
        process, so it does not depend on the place.
        """
        desk = self._table if on is None else self._desk(on)
        number = self._created
        self._created = number + 1
        if key is None and self.number:
            key = f"{cls.__name__} {self.number}.{number}"
        return ref_to(cls)(desk, desk.create(cls, args, number if key is None else key))

    def kill(self, ref: Ref) -> None:
        """End an actor: what it does is cancelled, and all its futures fail with ActorLostError."""
        self._keeper(ref).tell("kill", ref.id)

    def pause(self, ref: Ref) -> None:
        """Let its messages wait; what it does now goes on."""
        self._keeper(ref).tell("pause", ref.id)

    def resume(self, ref: Ref) -> None:
        self._keeper(ref).tell("resume", ref.id)

    def pause_place(self, number: int) -> Future:
        """Let all messages to actors of places[number] wait; what they do now goes on.

        The Future of this and the next two is done when it is so; it fails with HostLostError.
        """
        return self.keeper(number, "hold")

    def resume_place(self, number: int) -> Future:
        """Go on. Actors that were paused on their own stay so."""
        return self.keeper(number, "let_go")

    def kill_place(self, number: int) -> Future:
        """End all its actors; of another process, the process."""
        if isinstance(self.desks[number], Table):
            return self.keeper(number, "clear")
        return self.kernel.attempt(self.places[number].kill)

    def keeper(self, number: int, method: str, *args: Any) -> Future:
        """Ask the Keeper of a place something: at once if that is in this process, so that on a virtual clock
        it takes no time. Raises nothing; nothing is logged if nobody looks at the Future."""
        desk = self.desks[number]
        if isinstance(desk, Table):
            return self.kernel.attempt(getattr(desk.rows[-1][0], method), *args)
        return desk.ask(KEEPERS(desk, KEEPER_ID), method, args)

    def ref(self, place: int, id: int, cls: type) -> Ref:
        """The handle of an actor that there is already."""
        return ref_to(cls)(self.desks[place], id)

    async def save(self) -> dict[str, Any]:
        """The actors of all places, as plain values that json takes: id, class and state of each.

        Raises SpecError, with the actor and the field, if one is busy, or its state is not plain: None,
        numbers, strings, lists, tuples, dicts, Refs, its Here.
        """
        asked = [KEEPERS(desk, KEEPER_ID).save() for desk in self.desks]
        saved = await self.kernel.gather(*asked)
        return {"created": self._created, "places": {str(i): actors for i, actors in enumerate(saved)}}

    async def restore(self, saved: Mapping[str, Any], *, on: Place | None = None) -> None:
        """Make the saved actors of one place again, or of all, with the Refs they had.

        A process that is lost is started again. Raises SpecError if a class is not one of this program's.
        """
        self._created = max(self._created, saved["created"])
        done: list[Future] = []
        for number, place in enumerate(self.places):
            if on is None or place is on:
                actors = resolve(saved["places"][str(number)], self.ref)
                place.restart()
                done.append(KEEPERS(self.desks[number], KEEPER_ID).restore(actors))
        await self.kernel.gather(*done)

    def counts(self) -> list[Count]:
        """Of each place; of another process, as its last beat told. In O(places), and what is busy here."""
        return [
            Count(place.name, *desk.tally(), desk.messages, desk.bytes, desk.lost is not None)
            for place, desk in zip(self.places, self.desks, strict=True)
        ]

    def close(self) -> None:
        """End the places. What is still to come from other processes fails with HostLostError."""
        for place in self.places:
            place.close()

    def __enter__(self) -> Actors:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _keeper(self, ref: Ref) -> Ref:
        return KEEPERS(self.desks[ref.place], KEEPER_ID)

    def _desk(self, place: Place) -> Desk:
        desk = self._desk_of.get(id(place))
        if desk is None:
            if not any(place is known for known in self.places):
                names = ", ".join(known.name for known in self.places)
                raise SpecError(f"{place!r} is not one of these actors' places", expected=names)
            number = next(i for i, known in enumerate(self.places) if known is place)
            desk = self._desk_of[id(place)] = self.desks[number]
        return desk
