"""Light actors: a million objects that take one message at a time, here or at other places.

    actors = Actors(kernel, places=[Process(), Process()])
    players = [actors.create(Player, i, on=actors.places[1 + i % 2]) for i in range(1_000_000)]
    replies = await kernel.gather(*(player.guess(3) for player in players))

An actor is an object of any class whose methods are plain or `async def` and await futures and effects. Its
`Ref` has the same methods, each of which sends a message and returns the Future of its result. A message is
taken after all that the same sender sent before, when the one before it has been done. An actor costs its own
object and an entry in a table; a mailbox exists only while it is busy, a task only while an async method runs.

A Future that is an argument reaches the method as a Future, pending or done; its value goes from where it is
made to where it is awaited, and to nobody between. An actor that raises fails the future of that message only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from lightwork.errors import SpecError
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.places import Place


class Ref:
    """A handle of one actor: any public method of its class may be called on it, and returns a Future.

    place: the number of its place, 0 for this process. id: among the actors there. cls: its class.
    Refs are equal if place and id are; they may be arguments, results and parts of saved states.
    """

    __slots__ = ("_desk", "cls", "id")

    def __getattr__(self, method: str) -> Callable[..., Future]:
        """ref.method(*args) -> Future. Raises AttributeError if the class has no such public method."""
        ...

    def tell(self, method: str, *args: Any) -> None:
        """Send a message whose result nobody wants; an error is reported by the kernel as unobserved."""


class Here:
    """What an actor knows of where it is: given to `begin(self, here)`, if its class defines that, once it
    has been constructed.

    key: names it in every world. ref: itself.
    """

    kernel: Kernel
    actors: Actors
    ref: Ref
    key: str

    @property
    def rng(self) -> np.random.Generator:
        """Its own random stream: the same for the same seed and key, whatever the place."""
        ...


class Count(NamedTuple):
    """Of one place. idle counts those not constructed yet, too."""

    place: str
    idle: int
    busy: int
    paused: int
    waiting: int
    """Messages in mailboxes."""
    messages: int
    """Sent to it from this process, ever."""
    bytes: int
    """Of them; 0 where nothing is packed."""
    lost: bool


class Actors:
    """The actors that a kernel knows, at all its places. places: besides this process, which is places[0].

    Places that are processes need a kernel on a wall clock.
    """

    places: Sequence[Place]

    def __init__(self, kernel: Kernel, places: Sequence[Place] = ()) -> None: ...

    def create(self, cls: type, *args: Any, on: Place | None = None, key: str | None = None) -> Ref:
        """A new actor, constructed at its first message. on: one of `places`; None: this process.

        key: what its random stream depends on; by default its class and how many there were before, so
        that it is the same wherever the actor lives.
        """

    def kill(self, ref: Ref) -> None:
        """End an actor: what it does is cancelled, and all its futures fail with ActorLostError."""

    def pause(self, ref: Ref) -> None:
        """Let its messages wait; what it does now goes on."""

    def resume(self, ref: Ref) -> None: ...

    async def save(self) -> dict[str, Any]:
        """The actors of all places, as plain values that json takes: class, key, state.

        Raises SpecError, with the actor and the field, if one is busy or its state is not plain: None,
        numbers, strings, lists, tuples, dicts with strings as keys, Refs, its Here.
        """

    async def restore(self, saved: Mapping[str, Any], *, on: Place | None = None) -> None:
        """Make saved actors again, with the same Refs: those of one place (whose process is started again
        if it was lost), or of all."""

    def counts(self) -> list[Count]:
        """Of each place, as of its last beat; in O(places)."""

    def close(self) -> None:
        """End the places. What is still to come from them fails with HostLostError."""
