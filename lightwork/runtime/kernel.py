"""The kernel: steps coroutines itself, on a wall clock or a virtual one.

A coroutine awaits futures and effects. The kernel performs the effects that are the same in every world
(Sleep, Spawn, Use, Acquire, Release, Signal, Wait); the others (Compute, Move, Send, Recv, Collective) go
to the task's world.

Everything runs on one thread, in the order (time, sequence): first what is ready, then the next timer. Only
`post` and `stop` may be called from another thread.

Errors are never lost: an error that nobody waited for is logged when it happens on a wall clock, where
run() may go on for hours, and on every clock run() raises the first of them when it returns, unless main's
own error goes first.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from heapq import heapify, heappop, heappush
from math import inf
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy as np

from lightwork.errors import DeadlockError, InvariantError
from lightwork.runtime.clock import VirtualClock, WallClock
from lightwork.runtime.crew import Crew
from lightwork.runtime.effects import Effect, Release, Signal, Sleep
from lightwork.runtime.futures import CancelledError, Future, Task
from lightwork.runtime.local import PERFORM, give_back
from lightwork.runtime.trace import Trace

Call = tuple[Callable[..., Any], tuple[Any, ...]]
Timer = tuple[float, int, Callable[..., Any], tuple[Any, ...]]

_LONGEST_WAIT_S = (
    3600.0  # a lock's timeout has a limit that depends on the system; waiting again costs nothing
)
_MAX_FAILED = 1000
BACKGROUND_NICE = 10
"""A tenth of a core that another thread wants."""
_log = logging.getLogger(__name__)


class World(Protocol):
    """Interprets the effects of a rank."""

    scope: object
    """Who shares counters (Signal, Wait): tasks whose worlds have the same scope."""

    def perform(self, task: Task, effect: Effect) -> None:
        """Arrange for the task to be resumed with the effect's result."""
        ...

    def explain(self, effect: Any) -> str:
        """What a task that waits for this effect lacks, in words; "" if its repr says it all."""
        ...


class Kernel:
    """Runs tasks. clock: None is a virtual one. seed: of all random streams. trace: where spans go.

    current: the task that runs, or ran last. tasks: all, in the order in which they began. lost: on a wall
    clock, who is told of what failed and nobody waited for, instead of the log and of whoever calls run().
    """

    def __init__(
        self, clock: WallClock | VirtualClock | None = None, *, seed: int = 0, trace: Trace | None = None
    ) -> None:
        self.clock = clock or VirtualClock()
        self.now: Callable[[], float] = self.clock.now
        self.seed = seed
        self.trace = trace
        self.counters: dict[tuple[object, str], int] = {}
        self.counting: dict[tuple[object, str], list[tuple[int, Task]]] = {}
        self.ready: deque[Call] = deque()
        self._timers: list[Timer] = []
        self._dropped: set[int] = set()
        self._sequence = 0
        self._inbox: SimpleQueue[Call] = SimpleQueue()
        self._pools: dict[tuple[str, bool], _Pool] = {}
        self._rngs: dict[str, np.random.Generator] = {}
        self.tasks: dict[Task, None] = {}
        self._failed: dict[Future, None] = {}
        self._stopping = False
        self.current: Task | None = None
        self.lost: Callable[[Future], object] | None = None
        self._step = self.step  # bound once, not once per event

    # -- what programs call

    def rng(self, name: str) -> np.random.Generator:
        """The random stream of this name: its own, the same for the same seed, going on where it was left."""
        if name not in self._rngs:
            self._rngs[name] = random_stream(self.seed, name)
        return self._rngs[name]

    def spawn(
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str = "",
        world: World | None = None,
        parent: Task | None = None,
    ) -> Task:
        """Start a coroutine on the ready queue. parent: the task it is cancelled with; None for daemons."""
        task = Task(self, coro, name, world, parent)
        self.tasks[task] = None
        self.ready.append((self._step, (task, None, None)))
        return task

    def begin(self, task: Task) -> None:
        """Run a task up to where it waits first, here and now: for who is called by the ready queue."""
        self.tasks[task] = None
        self.step(task, None, None)

    def future(self, name: str = "") -> Future:
        """A future to be set by hand; name says what it stands for when nothing else can run."""
        return Future(self, name)

    def at(self, when_s: float, fn: Callable[..., Any], *args: Any) -> int:
        """Call fn(*args) at a time on this kernel's clock, at once if it has passed.

        Returns a number for `drop`.
        """
        self._sequence = sequence = self._sequence + 1
        heappush(self._timers, (when_s, sequence, fn, args))
        return sequence

    def drop(self, timer: int) -> None:
        """Forget a timer that has not rung. What has rung already must not be dropped."""
        self._dropped.add(timer)
        if len(self._dropped) > 64 and 2 * len(self._dropped) > len(self._timers):
            self._timers[:] = [t for t in self._timers if t[1] not in self._dropped]
            heapify(self._timers)
            self._dropped.clear()

    def call_soon(self, fn: Callable[..., Any], *args: Any) -> None:
        """Call fn(*args) after everything that is ready now."""
        self.ready.append((fn, args))

    def sleep(self, seconds: float) -> Sleep:
        return Sleep(seconds)

    async def gather(self, *futures: Future) -> list[Any]:
        """The values of all, in order. If one fails, or the caller is cancelled, all others are cancelled."""
        left = len(futures)
        bell = self.future(f"{left} futures ({', '.join(f.name for f in futures[:3])}{', ...' * (left > 3)})")

        def count(future: Future) -> None:
            nonlocal left
            left -= 1
            if not bell.done and (left == 0 or future.error is not None):
                bell.end(None, future.error)

        for future in futures:
            future.add_callback(count)
        try:
            if futures:
                await bell
        except BaseException:
            for future in futures:
                self.cancel(future)
            raise
        return [future.value for future in futures]

    async def first(self, *futures: Future) -> Future:
        """The first future that is done; the others go on."""
        bell = self.future("the first of several")

        def ring(future: Future) -> None:
            if not bell.done:
                bell.set(future)

        for future in futures:
            future.add_callback(ring)
        try:
            done: Future = await bell
            return done
        finally:
            for future in futures:
                future.remove_callback(ring)

    async def timeout(self, future: Future, seconds: float) -> Any:
        """The future's value. Raises TimeoutError, and cancels it, if it is not done in time.

        It is cancelled with the caller, too.
        """
        rang = False

        def ring() -> None:
            nonlocal rang
            rang = True
            self.cancel(future)

        timer = self.at(self.now() + seconds, ring)
        try:
            return await future
        except CancelledError:
            self.cancel(future)
            if rang:
                raise TimeoutError(f"{future.name or 'a future'} was not done in {seconds:g} s") from None
            raise
        finally:
            if not rang:
                self.drop(timer)

    def cancel(self, future: Future) -> None:
        """End a task: CancelledError is raised where it waits, and in its children. No-op if done."""
        future.cancel()

    def offload(
        self,
        fn: Callable[..., Any],
        *args: Any,
        cost_s: float = 0.0,
        background: bool = False,
        thread: str = "",
        may_hang: bool = False,
    ) -> Future:
        """Run fn(*args) beside the kernel's thread. background: giving way to all else that wants the core.

        thread: one after another, on a thread of this name: libraries such as torch keep helpers per thread.
        may_hang: on a thread that nothing else waits for, see `Crew`. On a virtual clock: now, and the result
        comes cost_s later.
        """
        future = self.future(getattr(fn, "__name__", "offload"))
        if self.clock.virtual:
            self.at(self.now() + cost_s, _settle, future, *_outcome(fn, args))
            return future
        kind = "crew" if may_hang else thread
        pool = self._pools.get((kind, background))
        if pool is None:
            pool = self._pools[kind, background] = self._new_pool(thread, background, may_hang)
        pool.submit(lambda: self._inbox.put((_settle, (future, *_outcome(fn, args)))))
        return future

    def _new_pool(self, thread: str, background: bool, may_hang: bool) -> _Pool:
        if may_hang:
            return Crew("lightwork-crew")
        if thread:
            return _OneThread(thread)
        return ThreadPoolExecutor(4, "lightwork", _give_way if background else None)

    def attempt(self, fn: Callable[..., Any], *args: Any) -> Future:
        """Run fn(*args) here and now: as `offload`, for what is over before another thread would wake."""
        future = self.future(getattr(fn, "__name__", "attempt"))
        _settle(future, *_outcome(fn, args))
        return future

    def post(self, fn: Callable[..., Any], *args: Any) -> None:
        """From any thread: call fn(*args) on the kernel's thread, at once if it waits."""
        self._inbox.put((fn, args))

    def stop(self) -> None:
        """From any thread: make run() return."""
        self.post(self._stop)

    def run(self, main: Coroutine[Any, Any, Any] | None = None, *, until_s: float | None = None) -> Any:
        """Run until main is done (its value is returned), until a time, or until stop().

        On a virtual clock also until nothing is left to do: then a pending main raises DeadlockError. On a
        wall clock a kernel with nothing to do waits for `post` and `offload`. Other tasks stay where they
        are, for the next run(). Raises an error that nobody waited for, see above.
        """
        task = self.spawn(main, name="main") if main is not None else Future(self, "main")
        self._stopping = False
        try:
            if isinstance(self.clock, VirtualClock):
                self._run_virtual(self.clock, task, inf if until_s is None else until_s)
            else:
                self._run_wall(task, inf if until_s is None else until_s)
        finally:
            for pool in self._pools.values():
                pool.shutdown(wait=False)
            self._pools.clear()
            if not self.tasks:
                self.tasks = {}  # an emptied one keeps the room that it once needed
        if main is not None and task.done:
            self._raise_lost(but=task)
            return task.result()
        self._raise_lost()
        if main is not None and until_s is None and not self._stopping:
            raise self._deadlock()
        return None

    def close(self) -> None:
        """End every task where it waits. The kernel is of no use afterwards."""
        for task in [*self.tasks]:
            task.coro.close()
        self.tasks.clear()
        self.ready.clear()
        self._timers.clear()

    # -- the loop

    def _run_virtual(self, clock: VirtualClock, main: Future, until_s: float) -> None:
        ready, timers, inbox, dropped = self.ready, self._timers, self._inbox, self._dropped
        next_call = ready.popleft
        while not self._stopping:
            while ready:
                fn, args = next_call()
                fn(*args)
                if main.done or self._stopping:
                    return
            if not inbox.empty():
                ready.append(inbox.get_nowait())
                continue
            if not timers:
                break
            if timers[0][0] > until_s:
                break
            when_s, sequence, fn, args = heappop(timers)
            if dropped and sequence in dropped:
                dropped.discard(sequence)
                continue
            if when_s > clock.time_s:
                clock.time_s = when_s
            fn(*args)
            if main.done:
                return
        if until_s != inf and not self._stopping:
            clock.time_s = max(clock.time_s, until_s)

    def _run_wall(self, main: Future, until_s: float) -> None:
        ready, timers, inbox = self.ready, self._timers, self._inbox
        while not (main.done or self._stopping):
            while not inbox.empty():
                ready.append(inbox.get_nowait())
            now_s = self.now()
            while timers and timers[0][0] <= now_s:
                _, sequence, fn, args = heappop(timers)
                if sequence in self._dropped:
                    self._dropped.discard(sequence)
                else:
                    ready.append((fn, args))
            if not ready:
                if now_s >= until_s:
                    return
                next_s = min(timers[0][0] if timers else inf, until_s)
                try:
                    ready.append(inbox.get(timeout=min(next_s - now_s, _LONGEST_WAIT_S)))
                except Empty:
                    continue
            for _ in range(len(ready)):
                fn, args = ready.popleft()
                fn(*args)
                if main.done or self._stopping:
                    return

    def _raise_lost(self, but: Future | None = None) -> None:
        lost = [f for f in self._failed if f is not but]
        self._failed.clear()
        if lost and lost[0].error is not None:
            if but is None or but.error is None:
                raise lost[0].error
            but.error.add_note(f"{lost[0].name or 'a task'} had failed, too: {lost[0].error!r}")

    def _deadlock(self) -> DeadlockError:
        waits = dict.fromkeys(f"{t.name or 'a task'} waits for {t.waiting_for()}" for t in self.tasks)
        shown = "; ".join([*waits][:8]) + (f"; and {len(waits) - 8} more" if len(waits) > 8 else "")
        return DeadlockError(f"nothing can run: {shown}", expected="somebody to set what is waited for")

    def _stop(self) -> None:
        self._stopping = True

    def observed(self, future: Future) -> None:
        """Somebody has seen this error. Called by futures."""
        self._failed.pop(future, None)

    def unobserved(self, future: Future) -> None:
        """Nobody waited when this error came. Called by futures."""
        if isinstance(future.error, CancelledError) or not future.computed:
            return
        if len(self._failed) < _MAX_FAILED:
            self._failed[future] = None
        if not self.clock.virtual:
            self.call_soon(self._log_lost, future)

    def _log_lost(self, future: Future) -> None:
        if future not in self._failed or future.name == "main":
            return
        if self.lost is not None:
            del self._failed[future]
            self.lost(future)
        else:
            _log.error("%s failed and nobody waits for it", future.name or "a task", exc_info=future.error)

    # -- tasks

    def step(self, task: Task, value: Any, error: BaseException | None) -> None:
        """Resume a task where it waits, with a value or an error.

        Called by worlds and futures through call_soon.
        """
        if task.done:
            return
        self.current = task
        try:
            yielded = task.coro.send(value) if error is None else task.coro.throw(error)
            while task.cancelled:
                if isinstance(yielded, Release | Signal):
                    give_back(self, task, yielded)
                    yielded = task.coro.send(None)
                else:
                    yielded = task.coro.throw(CancelledError(task.name))
        except BaseException as raised:
            del self.tasks[task]
            task.waits = None
            if isinstance(raised, StopIteration):
                task.end(raised.value, None)
            elif isinstance(raised, Exception | CancelledError):
                task.end(None, raised)
            else:
                task.end(None, CancelledError(task.name))
                raise
            return
        task.waits = yielded
        kind = type(yielded)
        if kind is Sleep:  # the most frequent by far in simulations
            self.resume_at(self.now() + yielded.seconds, task)
            return
        perform = PERFORM.get(kind)
        if perform is not None:
            perform(self, task, yielded)
        elif isinstance(yielded, Future):
            yielded.wake(task)
        elif task.world is not None and isinstance(yielded, Effect):
            task.world.perform(task, yielded)
        else:
            problem = InvariantError(
                f"{task.name or 'a task'} awaited {yielded!r}", expected="a future, or an effect of its world"
            )
            self.call_soon(self.step, task, None, problem)

    def resume(self, task: Task, value: Any = None) -> None:
        """Put a task that waits for an effect back on the ready queue."""
        self.ready.append((self._step, (task, value, None)))

    def refuse(self, task: Task, error: Exception) -> None:
        """Raise an error in a task that waits for an effect."""
        self.ready.append((self.step, (task, None, error)))

    def resume_at(self, when_s: float, task: Task, value: Any = None) -> None:
        """Resume a task at a time on this kernel's clock."""
        self._sequence = sequence = self._sequence + 1
        heappush(self._timers, (when_s, sequence, self._step, (task, value, None)))


class _OneThread:
    """Runs calls one after another: a pool of one thread without what a pool needs between two calls."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, call: Callable[[], object]) -> None:
        self._calls.put(call)

    def shutdown(self, wait: bool) -> None:
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def random_stream(seed: int, name: str) -> np.random.Generator:
    """The stream of this seed and name, from its beginning."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, key]))


_Pool = ThreadPoolExecutor | _OneThread | Crew


def _outcome(fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
    try:
        return fn(*args), None
    except BaseException as error:
        return None, error


def _give_way() -> None:
    """On a thread: let others have the core, where threads have priorities of their own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICE)


def _settle(future: Future, value: Any, error: BaseException | None) -> None:
    if not future.done:
        future.end(value, error)
