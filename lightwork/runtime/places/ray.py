"""A Ray actor with thousands of light actors in it: one per core, on whichever machine has room.

Ray never sees a light actor: it starts the process and says when that has died. Messages go by connections of
our own, in batches, between any two of them directly. Needs the extra `ray`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightwork.runtime.actors import Actors
    from lightwork.runtime.peer import Peer
    from lightwork.runtime.places._hosted import Hosted


class Ray:
    """address: of the cluster ("auto": that of this machine; "": none, Ray is started here), joined by the
    first of these places unless this process has joined one."""

    def __init__(self, name: str = "ray", *, address: str = "") -> None:
        self.name = name
        self.address = address
        self._hosted: Hosted | None = None
        self._leave: Callable[[], object] = bool

    def start(self, actors: Actors, number: int) -> Peer:
        from lightwork.runtime.places._hosted import MODULE, Hosted
        from lightwork.runtime.ray_actor import join, start_actor

        num_places = sum(isinstance(place, Ray) for place in actors.places)
        *_, self._leave = join(self.address, num_places)
        self._hosted = Hosted(actors, number, partial(start_actor, 1, f"{self.name} {number}", MODULE))
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
        self._leave()

    @property
    def pid(self) -> int:
        """Of its process; 0 while it starts."""
        return self._hosted.pid if self._hosted is not None else 0
