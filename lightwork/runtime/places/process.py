"""A process of this machine, by pipes: all that one tick says to it goes in one batch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lightwork.runtime.child import start_process

if TYPE_CHECKING:
    from lightwork.runtime.actors import Actors
    from lightwork.runtime.peer import Peer
    from lightwork.runtime.places._hosted import Hosted


class Process:
    """Started by the `Actors` it is given to; what is said to it meanwhile waits."""

    def __init__(self, name: str = "process") -> None:
        self.name = name
        self._hosted: Hosted | None = None

    def start(self, actors: Actors, number: int) -> Peer:
        from lightwork.runtime.places._hosted import MODULE, Hosted

        begin = partial(start_process, f"{self.name} {number}", MODULE)
        self._hosted = Hosted(actors, number, begin)
        return self._hosted.peer

    def restart(self) -> None:
        """Start it again if it is lost."""
        if self._hosted is not None:
            self._hosted.restart()

    def kill(self) -> None:
        if self._hosted is not None:
            self._hosted.kill()

    def close(self) -> None:
        if self._hosted is not None:
            self._hosted.close()

    @property
    def pid(self) -> int:
        """Of its process; 0 while it starts."""
        return self._hosted.pid if self._hosted is not None else 0
