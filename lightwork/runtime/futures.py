"""Values that come later, and the coroutines that wait for them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, TypeAlias

from lightwork.errors import InvariantError

if TYPE_CHECKING:
    from lightwork.runtime.kernel import Kernel, World


Waiter: TypeAlias = "Task | Callable[[Future], Any]"
Waiters: TypeAlias = "Waiter | list[Waiter] | None"


class CancelledError(BaseException):
    """Raised in a task that was cancelled, where it waits.

    Not an Exception: `except Exception` lets it pass.
    """


class Future:
    """A value that comes later, set exactly once.

    name: what it stands for, shown when nothing else can run.
    """

    __slots__ = ("_waiters", "done", "error", "kernel", "name", "value")
    computed = False
    """Whether its error is one that somebody has to see."""

    def __init__(self, kernel: Kernel, name: str = "") -> None:
        self.kernel = kernel
        self.name = name
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None
        self._waiters: Waiters = None

    def set(self, value: Any = None) -> None:
        """Give the value. Raises InvariantError if there is a result; no-op if this was cancelled."""
        self.end(value, None)

    def fail(self, error: BaseException) -> None:
        """Give an error instead of a value: it is raised in whoever waits."""
        self.end(None, error)

    def result(self) -> Any:
        """The value, or the error raised. Raises InvariantError while there is neither."""
        if not self.done:
            raise InvariantError(f"{self.name or 'a future'} has no result yet", expected="await it first")
        if self.error is not None:
            self.kernel.observed(self)
            raise self.error
        return self.value

    def add_callback(self, fn: Callable[[Future], Any]) -> None:
        """Call fn(self) on the kernel's thread once this is done; fn takes care of an error."""
        if self.done:
            self.kernel.observed(self)
            self.kernel.call_soon(fn, self)
        elif self._waiters is None:
            self._waiters = fn
        else:
            self._wait(fn)

    def remove_callback(self, fn: Callable[[Future], Any]) -> None:
        """Forget fn, if it has not been called."""
        if self._waiters == fn:
            self._waiters = None
        elif isinstance(self._waiters, list) and fn in self._waiters:
            self._waiters.remove(fn)

    def wake(self, task: Task) -> None:
        """Resume the task once this is done. Called by the kernel."""
        if self.done:
            self.kernel.observed(self)
            self.kernel.call_soon(self.kernel.step, task, self.value, self.error)
        else:
            self._wait(task)

    def cancel(self) -> None:
        """Nobody wants it any more: CancelledError is raised in whoever waits. No-op if done."""
        if not self.done:
            self.end(None, CancelledError(self.name))

    def end(self, value: Any, error: BaseException | None) -> None:
        if self.done:
            if isinstance(self.error, CancelledError):
                return  # who sets it could not know that nobody wants it any more
            raise InvariantError(f"{self.name or 'a future'} was set twice", expected="one result")
        self.done = True
        self.value = value
        self.error = error
        kernel, waiters = self.kernel, self._waiters
        self._waiters = None
        if not waiters:
            if error is not None:
                kernel.unobserved(self)
            return
        for waiter in waiters if isinstance(waiters, list) else (waiters,):
            if isinstance(waiter, Task):
                kernel.call_soon(kernel.step, waiter, value, error)
            else:
                kernel.call_soon(waiter, self)

    def _wait(self, waiter: Waiter) -> None:
        """Most futures have one waiter or none: a list for each would be most of what they take."""
        waiters = self._waiters
        if waiters is None:
            self._waiters = waiter
        elif isinstance(waiters, list):
            waiters.append(waiter)
        else:
            self._waiters = [waiters, waiter]

    def __await__(self) -> Generator[Future, Any, Any]:
        if not self.done:
            return (yield self)
        return self.result()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name or 'unnamed'} {'done' if self.done else 'pending'}>"


class Task(Future):
    """A running coroutine; done when that returns. Children spawned by it are cancelled when it ends."""

    computed = True
    __slots__ = ("_children", "cancelled", "coro", "parent", "waits", "world")

    def __init__(
        self,
        kernel: Kernel,
        coro: Coroutine[Any, Any, Any],
        name: str,
        world: World | None,
        parent: Task | None = None,
    ) -> None:
        self.kernel = kernel  # as Future does; a call less for each of millions of tasks
        self.name = name
        self.done = False
        self.value = None
        self.error = None
        self._waiters = None
        self.coro = coro
        self.world = world
        self.waits: Any = None
        self.cancelled = False
        self.parent = parent
        self._children: dict[Task, None] | None = None
        if parent is not None:
            if parent._children is None:
                parent._children = {}
            parent._children[self] = None

    def cancel(self) -> None:
        """Raise CancelledError where the task waits; from then on it cannot wait again. Its children follow.

        While it ends it may still give back what it holds: Release and Signal are carried out.
        """
        if not self.done and not self.cancelled:
            self.cancelled = True
            self.kernel.call_soon(self.kernel.step, self, None, CancelledError(self.name))

    def end(self, value: Any, error: BaseException | None) -> None:
        self.leave()
        super().end(value, error)

    def leave(self) -> None:
        """It is over: its parent forgets it, its children are cancelled."""
        if self.parent is not None:
            if self.parent._children is not None:
                self.parent._children.pop(self, None)
            self.parent = None
        if self._children:
            for child in self._children:
                child.cancel()
            self._children = None

    def waiting_for(self) -> str:
        """What it waits for, in words."""
        if isinstance(self.waits, Future):
            return self.waits.name or "an unnamed future"
        if self.waits is None:
            return "its turn"
        told = self.world.explain(self.waits) if self.world is not None else ""
        return told or repr(self.waits)
