"""Another process of the program, as an actor in one of them sees it: somebody else has started it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightwork.errors import SpecError

if TYPE_CHECKING:
    from lightwork.runtime.actors import Actors
    from lightwork.runtime.places import Desk


class Elsewhere:
    """A name for `create(on=...)`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self, actors: Actors, number: int) -> Desk:
        return actors.mesh.peers[number]

    def restart(self) -> None:
        """Its process is its starter's."""

    def kill(self) -> None:
        """Raises SpecError."""
        raise SpecError(f"{self.name} is killed by another process", expected="the process that started it")

    def close(self) -> None:
        """Its process is its starter's."""
