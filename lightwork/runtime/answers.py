"""The future of what another process computes, which may be anybody's argument before it is there.

Its value stays where it was made until somebody awaits it. So the owner (the process that makes it) is told
who holds a handle (LEND, DROP) and who wants the value (WANT); a value that nobody holds is let go of, and an
error that nobody has seen by then is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal
from weakref import ref

from lightwork.runtime.futures import CancelledError, Future, Task

if TYPE_CHECKING:
    from lightwork.runtime.kernel import Kernel
    from lightwork.runtime.peer import Peer

Key = int | tuple[int, int]
"""Of a future: (the place whose number it has, number); there, the number alone."""


class Answer(Future):
    """peer: who owns it. key: as above. count: of handles that the owner counts for this process.

    state: "here" until its message is sent; then the value is "awaited", or "there" and nobody wants it yet.
    """

    computed = True
    __slots__ = ("__weakref__", "args", "count", "id", "key", "method", "peer", "state")

    def __init__(
        self, kernel: Kernel, peer: Peer, key: Key, id: int = 0, method: str = "", args: tuple[Any, ...] = ()
    ) -> None:
        self.kernel = kernel
        self.done = False
        self.value = None
        self.error = None
        self._waiters = None
        self.peer = peer
        self.key = key
        self.id = id
        self.method = method
        self.args = args
        self.count = 0
        self.state: Literal["here", "awaited", "there"] = "here"

    @property
    def name(self) -> str:  # type: ignore[override]  # made when somebody reads it, not for each of millions
        return f"{self.method or 'an answer'} of place {self.peer.number}"

    @property
    def wanted(self) -> bool:
        return self._waiters is not None

    def add_callback(self, fn: Callable[[Future], Any]) -> None:
        if self.done or self._waiters is not None:
            super().add_callback(fn)
            return
        if self.state == "there":
            self.peer.want(self)
        self._waiters = fn

    def wake(self, task: Task) -> None:
        if self.state == "there" and not self.done:
            self.peer.want(self)
        super().wake(task)

    def cancel(self) -> None:
        """The work, too, is cancelled where it is done."""
        if not self.done:
            self.peer.cancelled(self)
            self.end(None, CancelledError(self.name))


class Held(ref[Answer]):
    """An Answer that nobody here waits for: its owner is told when it is gone."""

    __slots__ = ("count", "key", "peer")

    def __init__(self, answer: Answer, gone: Callable[[Any], object]) -> None:
        self.key = answer.key
        self.peer = answer.peer
        self.count = answer.count


class Owned:
    """A future of this process that others have handles of.

    holders: how many, by place; a DROP may come before the LEND, so some counts are negative meanwhile.
    wants: places to send the value to. seen: whether somebody has been sent it.
    """

    __slots__ = ("future", "holders", "key", "seen", "wants")

    def __init__(self, key: tuple[int, int]) -> None:
        self.key = key
        self.future: Future | None = None
        self.holders: dict[int, int] = {}
        self.wants: list[int] = []
        self.seen = False

    def hold(self, place: int, count: int) -> None:
        left = self.holders.get(place, 0) + count
        if left:
            self.holders[place] = left
        else:
            del self.holders[place]
