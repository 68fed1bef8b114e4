"""Places: where light actors live. A place is given to `Actors`, which starts it and ends it.

local.py      this process; every `Actors` has one
process.py    a process of this machine, by pipes
ray.py        a Ray actor per core, each with thousands of light actors in it
simulated.py  a host and its link on the virtual clock
elsewhere.py  another of the processes, as one of them sees it

To add one: a class with the methods of `Place` in a file here, and its name in tests/runtime/test_places.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from lightwork.errors import HostLostError
    from lightwork.runtime.actors import Actors
    from lightwork.runtime.futures import Future
    from lightwork.runtime.refs import Ref
    from lightwork.runtime.table import Tally


class Desk(Protocol):
    """The way to the actors of one place, as this process's Refs use it.

    number: of the place. messages, bytes: that went this way. lost: why there is none, if there is none.
    losses: how often it was lost.
    """

    number: int
    messages: int
    bytes: int
    lost: HostLostError | None
    losses: int

    def create(self, cls: type, args: tuple[Any, ...], key: str | int) -> int:
        """The id of a new actor."""
        ...

    def ask(self, ref: Ref, method: str, args: tuple[Any, ...]) -> Future: ...

    def tell(self, ref: Ref, method: str, args: tuple[Any, ...]) -> None: ...

    def tally(self) -> Tally: ...


class Place(Protocol):
    """Where actors live."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    def start(self, actors: Actors, number: int) -> Desk:
        """Called once, by the Actors it is given to."""
        ...

    def restart(self) -> None:
        """Be there again, without actors, if it was lost."""
        ...

    def kill(self) -> None:
        """End the process that its actors live in, if that is another one: they are lost."""
        ...

    def close(self) -> None: ...
