"""Places: where light actors live. A place is given to `Actors`, which starts it and ends it.

local.py      this process; every `Actors` has one
process.py    a process of this machine, by pipes
ray.py        a Ray actor per core, each with thousands of light actors in it
simulated.py  a host and its link on the virtual clock

To add one: a class with the methods of `Place` in a file here, and its name in tests/runtime/test_places.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from lightwork.runtime.actors import Actors, Ref
    from lightwork.runtime.futures import Future


class Desk(Protocol):
    """The way to the actors of one place, as `Ref` uses it."""

    number: int

    def create(self, cls: type, args: tuple[Any, ...], key: str | None) -> int:
        """The id of a new actor."""
        ...

    def ask(self, ref: Ref, method: str, *args: Any) -> Future: ...

    def tell(self, ref: Ref, method: str, *args: Any) -> None: ...


class Place(Protocol):
    """Where actors live."""

    name: str

    def start(self, actors: Actors, number: int) -> Desk:
        """Called once, by the Actors it is given to."""
        ...

    def close(self) -> None: ...
