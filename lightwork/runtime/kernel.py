"""The kernel: steps coroutines itself, on a wall clock or a virtual one.

A coroutine awaits futures and effects. The kernel performs the effects that are the same in every world
(Sleep, Spawn, Use, Acquire, Release, Signal, Wait); the others (Compute, Move, Send, Recv, Collective) go
to the task's world.

Everything runs on one thread, in the order (time, sequence): first what is ready, then the next timer. Only
`post` may be called from another thread.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from heapq import heappop, heappush
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy as np

from lightwork.errors import DeadlockError, InvariantError, RangeError
from lightwork.runtime.clock import VirtualClock, WallClock
from lightwork.runtime.effects import Acquire, Effect, Release, Signal, Sleep, Spawn, Use, Wait
from lightwork.runtime.futures import CancelledError, Future, Task
from lightwork.runtime.trace import Trace

Call = tuple[Callable[..., Any], tuple[Any, ...]]


class World(Protocol):
    """Interprets the effects of a rank: perform() has the task resumed with the effect's result."""

    def perform(self, task: Task, effect: Effect) -> None: ...


class Kernel:
    """Runs tasks. clock: None is a virtual one. seed: of every random stream. trace: where spans go."""

    def __init__(
        self, clock: WallClock | VirtualClock | None = None, *, seed: int = 0, trace: Trace | None = None
    ) -> None:
        self.clock = clock or VirtualClock()
        self.now: Callable[[], float] = self.clock.now
        self.seed = seed
        self.trace = trace
        self._ready: deque[Call] = deque()
        self._timers: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._sequence = count()
        self._inbox: SimpleQueue[Call] = SimpleQueue()
        self._offloaded = 0
        self._pool: ThreadPoolExecutor | None = None
        self._counters: dict[str, int] = {}
        self._counting: dict[str, list[tuple[int, Task]]] = {}
        self._tasks: dict[Task, None] = {}
        self._failed: list[Task] = []
        self._stopping = False
        self._perform: dict[type, Callable[[Task, Any], None]] = {
            Sleep: self._sleep,
            Spawn: self._spawn_child,
            Use: self._use,
            Acquire: self._acquire,
            Release: self._release,
            Signal: self._signal,
            Wait: self._wait,
        }

    # -- what programs call

    def rng(self, name: str) -> np.random.Generator:
        """A random stream of its own for each name, the same for the same seed."""
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        return np.random.Generator(np.random.Philox(key=[self.seed % 2**64, key]))

    def spawn(self, coro: Coroutine[Any, Any, Any], *, name: str = "", world: World | None = None) -> Task:
        """Start a coroutine on the ready queue. If it fails and nobody awaits it, run() raises its error."""
        task = Task(self, coro, name, world)
        self._tasks[task] = None
        self._ready.append((self.step, (task, None, None)))
        return task

    def future(self, name: str = "") -> Future:
        """A future to be set by hand; name says what it stands for when nothing else can run."""
        return Future(self, name)

    def at(self, when_s: float, fn: Callable[..., Any], *args: Any) -> None:
        """Call fn(*args) at a time on this kernel's clock, at once if it has passed."""
        heappush(self._timers, (when_s, next(self._sequence), fn, args))

    def call_soon(self, fn: Callable[..., Any], *args: Any) -> None:
        self._ready.append((fn, args))

    def sleep(self, seconds: float) -> Sleep:
        return Sleep(seconds)

    async def gather(self, futures: Iterable[Future]) -> list[Any]:
        """The values of all, in order. If one fails the others are cancelled and its error is raised."""
        waiting = list(futures)
        try:
            return [await future for future in waiting]
        except BaseException:
            for future in waiting:
                self.cancel(future)
            raise

    async def first(self, futures: Iterable[Future]) -> Future:
        """The first future that is done; the others go on."""
        waiting = list(futures)
        bell = self.future("the first of several")
        for future in waiting:
            future.add_callback(lambda _: None if bell.done else bell.set(None))
        await bell
        return next(future for future in waiting if future.done)

    async def timeout(self, future: Future, seconds: float) -> Any:
        """The future's value. Raises TimeoutError, and cancels it, if it is not done in time."""
        bell = self.future("a timeout")

        def ring(_: object = None) -> None:
            if not bell.done:
                bell.set(None)

        self.at(self.now() + seconds, ring)
        future.add_callback(ring)
        await bell
        if not future.done:
            self.cancel(future)
            raise TimeoutError(f"{future.name or 'a future'} was not done in {seconds:g} s")
        return await future

    def cancel(self, future: Future) -> None:
        """End a task.

        CancelledError is raised where it waits, and its children are cancelled. No-op if done.
        """
        if isinstance(future, Task):
            future.cancel()
        elif not future.done:
            future.fail(CancelledError(future.name))

    def offload(self, fn: Callable[..., Any], *args: Any, cost_s: float = 0.0) -> Future:
        """Run fn(*args) beside the kernel's thread.

        On a virtual clock: now, and the result comes cost_s later.
        """
        future = self.future(getattr(fn, "__name__", "offload"))
        if self.clock.virtual:
            self.at(self.now() + cost_s, _settle, future, *_outcome(fn, args))
            return future
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="lightwork")
        self._offloaded += 1

        def work() -> None:
            outcome = _outcome(fn, args)
            self._inbox.put((self._returned, (future, *outcome)))

        self._pool.submit(work)
        return future

    def post(self, fn: Callable[..., Any], *args: Any) -> None:
        """From any thread: call fn(*args) on the kernel's thread."""
        self._inbox.put((fn, args))

    def stop(self) -> None:
        """From any thread: make run() return."""
        self.post(self._stop)

    def run(self, main: Coroutine[Any, Any, Any] | None = None, *, until_s: float | None = None) -> Any:
        """Run until main is done (its value is returned), until a time, or until nothing is left to do.

        Raises DeadlockError when main can never be done, and the error of a task that nobody awaited.
        """
        task = self.spawn(main, name="main") if main is not None else None
        self._stopping = False
        try:
            while not (self._stopping or (task is not None and task.done)):
                self._drain(task)
                if (task is not None and task.done) or self._stopping or not self._advance(until_s):
                    break
        finally:
            if self._pool is not None:
                self._pool.shutdown(wait=False)
                self._pool = None
        return self._finish(task, until_s)

    # -- the loop

    def _drain(self, main: Task | None) -> None:
        ready, inbox = self._ready, self._inbox
        while True:
            while not inbox.empty():
                ready.append(inbox.get_nowait())
            if not ready:
                return
            for _ in range(len(ready)):
                fn, args = ready.popleft()
                fn(*args)
                if (main is not None and main.done) or self._stopping:
                    return

    def _advance(self, until_s: float | None) -> bool:
        """Let time pass until something can run; False if nothing ever will."""
        timers = self._timers
        next_s = timers[0][0] if timers else None
        if until_s is not None and (next_s is None or next_s > until_s):
            next_s = None if self.clock.virtual else until_s
        if isinstance(self.clock, VirtualClock):
            if next_s is None:
                if until_s is not None:
                    self.clock.time_s = max(self.clock.time_s, until_s)
                return False
            self.clock.time_s = max(self.clock.time_s, next_s)
            _, _, fn, args = heappop(timers)
            fn(*args)
            return True
        return self._wait_on_wall(next_s, until_s)

    def _wait_on_wall(self, next_s: float | None, until_s: float | None) -> bool:
        left_s = None if next_s is None else next_s - self.now()
        if left_s is None or left_s > 0:
            try:
                self._ready.append(self._inbox.get(timeout=left_s))
            except Empty:
                pass
            else:
                return True
        while self._timers and self._timers[0][0] <= self.now():
            _, _, fn, args = heappop(self._timers)
            self._ready.append((fn, args))
        return until_s is None or self.now() < until_s or bool(self._ready)

    def _finish(self, main: Task | None, until_s: float | None) -> Any:
        lost = [t for t in self._failed if not t.observed and t is not main]
        self._failed.clear()
        if main is not None and not main.done and not self._stopping and until_s is None:
            raise lost[0].error if lost and lost[0].error else self._deadlock()
        if main is not None and main.error is not None:
            raise main.error
        if lost and lost[0].error is not None:
            raise lost[0].error
        return main.value if main is not None else None

    def _deadlock(self) -> DeadlockError:
        waits = [f"{t.name or 'a task'} waits for {t.waiting_for()}" for t in self._tasks if not t.done]
        shown = "; ".join(waits[:8]) + ("; ..." if len(waits) > 8 else "")
        return DeadlockError(f"nothing can run: {shown}", expected="somebody to set what is waited for")

    def _stop(self) -> None:
        self._stopping = True

    def _returned(self, future: Future, value: Any, error: BaseException | None) -> None:
        self._offloaded -= 1
        _settle(future, value, error)

    # -- tasks

    def step(self, task: Task, value: Any, error: BaseException | None) -> None:
        """Resume a task where it waits, with a value or an error.

        Called by worlds and futures through call_soon.
        """
        if task.done:
            return
        task.waits = None
        try:
            yielded = task.coro.send(value) if error is None else task.coro.throw(error)
            while task.cancelled:
                yielded = task.coro.throw(CancelledError(task.name))
        except StopIteration as end:
            del self._tasks[task]
            task.end(end.value, None)
            return
        except BaseException as raised:
            del self._tasks[task]
            if not isinstance(raised, Exception | CancelledError):
                raise
            if not isinstance(raised, CancelledError):
                self._failed.append(task)
            task.end(None, raised)
            return
        task.waits = yielded
        if isinstance(yielded, Future):
            yielded.wake(task)
            return
        perform = self._perform.get(type(yielded))
        if perform is not None:
            perform(task, yielded)
        elif task.world is not None and isinstance(yielded, Effect):
            task.world.perform(task, yielded)
        else:
            problem = InvariantError(
                f"{task.name or 'a task'} awaited {yielded!r}", expected="a future, or an effect of its world"
            )
            self.call_soon(self.step, task, None, problem)

    def resume(self, task: Task, value: Any = None) -> None:
        """Put a task that waits for an effect back on the ready queue."""
        self._ready.append((self.step, (task, value, None)))

    def resume_at(self, when_s: float, task: Task, value: Any = None) -> None:
        heappush(self._timers, (when_s, next(self._sequence), self.step, (task, value, None)))

    # -- effects of every world

    def _sleep(self, task: Task, effect: Sleep) -> None:
        self.resume_at(self.now() + max(0.0, effect.seconds), task)

    def _spawn_child(self, task: Task, effect: Spawn) -> None:
        child = self.spawn(effect.coro, name=effect.name or task.name, world=task.world)
        task.adopt(child)
        self.resume(task, child)

    def _use(self, task: Task, effect: Use) -> None:
        effect.resource.use(self, effect.amount, self.resume, task)

    def _acquire(self, task: Task, effect: Acquire) -> None:
        effect.store.acquire(self, effect.amount, task)

    def _release(self, task: Task, effect: Release) -> None:
        effect.store.release(self, effect.amount)
        self.resume(task)

    def _signal(self, task: Task, effect: Signal) -> None:
        if effect.count < 0:
            raise RangeError(f"Signal({effect.name!r}) counts down by {-effect.count}", expected="count >= 0")
        reached = self._counters[effect.name] = self._counters.get(effect.name, 0) + effect.count
        waiting = self._counting.get(effect.name, [])
        self._counting[effect.name] = [(n, t) for n, t in waiting if n > reached]
        for n, waiter in waiting:
            if n <= reached:
                self.resume(waiter)
        self.resume(task)

    def _wait(self, task: Task, effect: Wait) -> None:
        if self._counters.get(effect.name, 0) >= effect.count:
            self.resume(task)
        else:
            self._counting.setdefault(effect.name, []).append((effect.count, task))


def _outcome(fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
    try:
        return fn(*args), None
    except BaseException as error:
        return None, error


def _settle(future: Future, value: Any, error: BaseException | None) -> None:
    if future.done:
        return
    if error is None:
        future.set(value)
    else:
        future.fail(error)
