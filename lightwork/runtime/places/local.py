"""This process: messages are objects, and an actor is taken up when what came before has been."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightwork.runtime.table import Table

if TYPE_CHECKING:
    from lightwork.runtime.actors import Actors


class Local:
    """The place that every `Actors` has."""

    def __init__(self, name: str = "here") -> None:
        self.name = name

    def start(self, actors: Actors, number: int) -> Table:
        return Table(actors, number)

    def restart(self) -> None:
        """It is there as long as this process is."""

    def kill(self) -> None:
        """Its process is this one."""

    def close(self) -> None:
        """Its actors end with it."""
