"""What one message asks of an actor: the future of its result and, while an async method runs, its task."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from lightwork.runtime.futures import CancelledError, Future, Task

if TYPE_CHECKING:
    from lightwork.runtime.kernel import Kernel
    from lightwork.runtime.table import Table


class Call(Task):
    """One object for both: millions are made. What only a task has is set when one begins.

    actor: who does it, from then on. since_s: when that was. coro: None before and after.
    """

    __slots__ = ("actor", "args", "id", "method", "since_s", "table")
    coro: Coroutine[Any, Any, Any] | None  # type: ignore[assignment]

    def __init__(self, kernel: Kernel, table: Table, id: int, method: str, args: tuple[Any, ...]) -> None:
        self.kernel = kernel
        self.done = False
        self.value = None
        self.error = None
        self._waiters = None
        self.cancelled = False
        self.coro = None
        self.table = table
        self.id = id
        self.method = method
        self.args = args

    @property
    def name(self) -> str:  # type: ignore[override]  # made when somebody reads it, not for each of millions
        return f"{self.table.describe(self.id)}.{self.method}"

    def begin(self, actor: Any, coro: Coroutine[Any, Any, Any]) -> None:
        """Run an async method, now."""
        self.actor = actor
        self.since_s = self.kernel.now()
        self.coro = coro
        self.args = ()
        self.waits = self.world = self.parent = self._children = None
        self.kernel.begin(self)

    def cancel(self) -> None:
        if self.coro is not None:
            super().cancel()
        else:
            Future.cancel(self)

    def end(self, value: Any, error: BaseException | None) -> None:
        if self.coro is None:
            self.answer(value, error)
            return
        self.coro = None
        if isinstance(error, CancelledError) and not self.table.runs(self):
            error = self.table.lost_error(self.id)
        self.leave()
        self.answer(value, error)
        self.table.ended(self)

    def answer(self, value: Any, error: BaseException | None) -> None:
        """Give the result to who asked."""
        Future.end(self, value, error)
