"""The effects that are the same in every world: how the kernel performs them (Sleep: in `Kernel.step`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightwork.errors import LightworkError, RangeError
from lightwork.runtime.effects import Acquire, Release, Signal, Spawn, Use, Wait
from lightwork.runtime.futures import Task

if TYPE_CHECKING:
    from lightwork.runtime.kernel import Kernel


def _spawn(kernel: Kernel, task: Task, effect: Spawn) -> None:
    child = kernel.spawn(effect.coro, name=effect.name or task.name, world=task.world, parent=task)
    kernel.resume(task, child)


def _use(kernel: Kernel, task: Task, effect: Use) -> None:
    try:
        effect.resource.use(kernel, effect.amount, kernel.resume, task)
    except LightworkError as error:
        kernel.refuse(task, error)


def _acquire(kernel: Kernel, task: Task, effect: Acquire) -> None:
    try:
        effect.store.acquire(kernel, effect.amount, task)
    except LightworkError as error:
        kernel.refuse(task, error)


def _release(kernel: Kernel, task: Task, effect: Release) -> None:
    try:
        effect.store.release(kernel, effect.amount)
    except LightworkError as error:
        kernel.refuse(task, error)
    else:
        kernel.resume(task)


def _signal(kernel: Kernel, task: Task, effect: Signal) -> None:
    if effect.count < 0:
        problem = RangeError(f"Signal({effect.name!r}) counts down by {-effect.count}", expected="count >= 0")
        kernel.refuse(task, problem)
    else:
        _count(kernel, _key(task, effect.name), effect.count)
        kernel.resume(task)


def give_back(kernel: Kernel, task: Task, effect: Release | Signal) -> None:
    """Perform what even a cancelled task may do, without resuming it."""
    if isinstance(effect, Release):
        effect.store.release(kernel, effect.amount)
    else:
        _count(kernel, _key(task, effect.name), max(0, effect.count))


def _count(kernel: Kernel, key: tuple[object, str], count: int) -> None:
    reached = kernel.counters[key] = kernel.counters.get(key, 0) + count
    waiting = kernel.counting.pop(key, None)
    if waiting is None:
        return
    late = []
    for n, waiter in waiting:
        if n > reached:
            late.append((n, waiter))
        else:
            kernel.resume(waiter)
    if late:
        kernel.counting[key] = late


def _wait(kernel: Kernel, task: Task, effect: Wait) -> None:
    key = _key(task, effect.name)
    if kernel.counters.get(key, 0) >= effect.count:
        kernel.resume(task)
    else:
        waiting = kernel.counting.setdefault(key, [])
        if waiting and waiting[0][1].done:
            waiting[:] = [w for w in waiting if not w[1].done]
        waiting.append((effect.count, task))


def _key(task: Task, name: str) -> tuple[object, str]:
    return (task.world.scope if task.world is not None else None, name)


PERFORM: dict[type, Callable[[Kernel, Any, Any], None]] = {
    Spawn: _spawn,
    Use: _use,
    Acquire: _acquire,
    Release: _release,
    Signal: _signal,
    Wait: _wait,
}
