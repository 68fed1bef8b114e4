"""The handle of an actor, and what an actor is told of where it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lightwork.errors import SpecError
from lightwork.runtime.kernel import random_stream

if TYPE_CHECKING:
    from lightwork.runtime.actors import Actors
    from lightwork.runtime.futures import Future
    from lightwork.runtime.kernel import Kernel
    from lightwork.runtime.places import Desk


class Ref:
    """A handle of one actor: any public method of its class may be called on it, and returns a Future.

    place: the number of its place, 0 for the process that began. id: among the actors there. cls: its class.
    Refs are equal if place and id are; they may be arguments, results and parts of saved states.
    """

    __slots__ = ("_desk", "id")
    cls: ClassVar[type]

    def __init__(self, desk: Desk, id: int) -> None:
        self._desk = desk
        self.id = id

    def __getattr__(self, method: str) -> Callable[..., Future]:
        """For names that the class does not have: those it has are methods of its own kind of Ref."""
        raise AttributeError(f"{self.cls.__name__} has no public method {method!r}")

    def tell(self, method: str, *args: Any) -> None:
        """Send a message whose result nobody wants; the kernel reports an error as one nobody waits for."""
        self._desk.tell(self, method, args)

    @property
    def place(self) -> int:
        return self._desk.number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and self.id == other.id and self.place == other.place

    def __hash__(self) -> int:
        return hash((self.place, self.id))

    def __repr__(self) -> str:
        return f"<{self.cls.__name__} {self.id} of place {self.place}>"

    def __reduce__(self) -> Any:
        raise SpecError(f"{self!r} is pickled", expected="a Ref as part of a message or a saved state")


@cache
def ref_to(cls: type) -> type[Ref]:
    """The Refs of a class: with methods of their own, which are found in half the time of names made up."""
    names = [n for n in dir(cls) if n[0] != "_" and callable(getattr(cls, n)) and not hasattr(Ref, n)]
    made = {name: _sends(name, getattr(cls, name).__doc__) for name in names}
    return type(f"Ref[{cls.__name__}]", (Ref,), {"__slots__": (), "cls": cls, **made})


def _sends(method: str, doc: str | None) -> Callable[..., Future]:
    def send(self: Ref, *args: Any) -> Future:
        return self._desk.ask(self, method, args)

    send.__name__ = method
    send.__doc__ = doc
    return send


class Here:
    """Given to `begin(self, here)`, if an actor's class defines that, once the actor has been constructed.

    key: names the actor in every world. ref: itself.
    """

    __slots__ = ("_drawn", "_rng", "actors", "key", "ref")

    def __init__(self, actors: Actors, ref: Ref, key: str, drawn: Any = None) -> None:
        self.actors = actors
        self.ref = ref
        self.key = key
        self._rng: np.random.Generator | None = None
        self._drawn = drawn

    @property
    def kernel(self) -> Kernel:
        return self.actors.kernel

    @property
    def rng(self) -> np.random.Generator:
        """Its own random stream: the same for the same seed and key, whatever the place."""
        if self._rng is None:
            self._rng = random_stream(self.kernel.seed, f"actor {self.key}")
            if self._drawn is not None:
                _advance(self._rng, self._drawn)
        return self._rng

    def drawn(self) -> Any:
        """How far its stream has been drawn from, in plain values."""
        return self._drawn if self._rng is None else _position(self._rng)


def _position(rng: np.random.Generator) -> list[Any]:
    """Where a Philox stream is: its counter, and what it holds of the last block."""
    state: Any = rng.bit_generator.state
    counter = [int(x) for x in state["state"]["counter"]]
    buffer = [int(x) for x in state["buffer"]]
    return [counter, buffer, state["buffer_pos"], state["has_uint32"], state["uinteger"]]


def _advance(rng: np.random.Generator, position: list[Any]) -> None:
    state: Any = rng.bit_generator.state
    counter, buffer, state["buffer_pos"], state["has_uint32"], state["uinteger"] = position
    state["state"]["counter"] = np.array(counter, np.uint64)
    state["buffer"] = np.array(buffer, np.uint64)
    rng.bit_generator.state = state
