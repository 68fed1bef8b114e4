"""Tasks that need each other's results, each begun the moment it can be; nothing polls.

    graph = Graph(kernel, start)            # start(task, arguments) -> a result, or a Future of one
    graph.add(Task(1, "search", ("Oslo",)))
    graph.add(Task(2, "length", (Slot(1),)))            # runs once 1 has its result
    results = await graph.seal()                        # by id, when all are done

Tasks may be added while others run. A result reaches the tasks that need it as a value, by reference: it is
never written into a text and read back, so what a result says cannot change what is called.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

from lightwork.errors import UsageError
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel

SHOWN = 80
PLAIN = frozenset((str, int, float, bool, NoneType))


@dataclass(frozen=True, slots=True)
class Slot:
    """The result of task id; path: what of it, by keys and positions ("$3.price", "$3.0")."""

    id: int
    path: tuple[str, ...] = ()

    def of(self, result: Any) -> Any:
        """Raises UsageError if there is nothing at the path."""
        for key in self.path:
            try:
                result = result[key] if isinstance(result, Mapping) else result[int(key)]
            except (LookupError, TypeError, ValueError):
                raise UsageError(
                    f"there is no {key!r} in {str(result)[:SHOWN]}", expected=str(self)
                ) from None
        return result

    def __str__(self) -> str:
        return ".".join([f"${self.id}", *self.path])


@dataclass(frozen=True, slots=True)
class Template:
    """A text with results in it."""

    parts: tuple[str | Slot, ...]

    def __str__(self) -> str:
        return "".join(str(part) for part in self.parts)


class Task:
    """One call that is planned. args: by position, named: by name; both may hold Slots and Templates, at any
    depth. thought: why. deps: the tasks whose results it needs.
    """

    __slots__ = ("args", "deps", "id", "named", "thought", "tool")

    def __init__(
        self,
        id: int,
        tool: str,
        args: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
        thought: str = "",
    ) -> None:
        self.id, self.tool, self.args, self.thought = id, tool, tuple(args), thought
        self.named: Mapping[str, Any] = named or {}
        self.deps: tuple[int, ...] = _needs(self.args)
        if self.named:
            self.deps = tuple(dict.fromkeys((*self.deps, *_slots([*self.named.values()]))))

    def __str__(self) -> str:
        said = [_said(arg) for arg in self.args] + [f"{k}={_said(v)}" for k, v in self.named.items()]
        return f"{self.id}. {self.tool}({', '.join(said)})"


Start = Callable[[Task, tuple[Any, ...], Mapping[str, Any]], Any]
"""(task, its arguments with results in them, by position and by name) -> its result, or a Future of it."""


class Graph:
    """Carries out tasks. start: begins one. failed: given what it raised, or its future failed with, makes
    that the task's result; without it the whole fails. read: what of a result others see; it may raise.
    told: called with each task and its result as it comes.

    tasks, results: by id.
    """

    # fmt: off
    __slots__ = (
        "_after", "_begun", "_done", "_failed", "_kernel", "_left", "_read", "_sealed", "_start", "_told",
        "results", "tasks",
    )
    # fmt: on

    def __init__(
        self,
        kernel: Kernel,
        start: Start,
        *,
        failed: Callable[[Task, Exception], Any] | None = None,
        read: Callable[[Any], Any] | None = None,
        told: Callable[[Task, Any], object] | None = None,
    ) -> None:
        self.tasks: dict[int, Task] = {}
        self.results: dict[int, Any] = {}
        self._kernel, self._start, self._failed, self._read, self._told = kernel, start, failed, read, told
        self._left: dict[int, int] = {}
        self._after: dict[int, list[int]] = {}
        self._begun: dict[int, Future] = {}
        self._done: deque[tuple[Task, Any]] = deque()
        self._sealed: Future | None = None

    def add(self, task: Task) -> None:
        """Raises UsageError for an id that is taken and for results of tasks that are not there."""
        if task.id in self.tasks:
            raise UsageError(f"there is a task {task.id} already", expected="a new id")
        left = 0
        for dep in task.deps:
            if dep not in self.tasks:
                raise UsageError(f"task {task.id} needs ${dep}", expected="the id of a task before it")
            if dep not in self.results:
                left += 1
                self._after.setdefault(dep, []).append(task.id)
        self.tasks[task.id] = task
        if left:
            self._left[task.id] = left
        else:
            self._begin(task)

    def seal(self) -> Future:
        """No more tasks come. Its value is `results`, in order of id, once all are there."""
        if self._sealed is None:
            waiting = ", ".join(str(i) for i in [*self.tasks] if i not in self.results)
            self._sealed = self._kernel.future(f"the results of tasks {waiting}")
            self._end_if_whole()
        return self._sealed

    def cancel(self) -> None:
        """Give up what runs; what has not begun never will."""
        self._left.clear()
        for future in [*self._begun.values()]:
            self._kernel.cancel(future)

    def layers(self) -> list[list[int]]:
        """Ids by level: a task's level is one more than the highest of those it needs."""
        return layers({task.id: task.deps for task in self.tasks.values()})

    def to_text(self) -> str:
        """A line for each task, as a plan says it."""
        return "\n".join(str(task) for task in self.tasks.values())

    def _begin(self, task: Task) -> None:
        """Raises what `start` raises unless there is `failed`."""
        try:
            args, named = task.args, task.named
            if task.deps:
                known = self.results
                if self._read is not None:
                    known = {id: self._read(known[id]) for id in task.deps}
                args = tuple([_filled(arg, known) for arg in args])
                named = fill(named, known) if named else named
            result = self._start(task, args, named)
        except Exception as error:
            if self._failed is None:
                raise
            result = self._failed(task, error)
        if isinstance(result, Future):
            self._begun[task.id] = result
            result.add_callback(lambda future: self._ended(task, future))
            return
        self._done.append((task, result))
        if len(self._done) == 1:  # else an outer call goes on with it
            self._go_on()

    def _ended(self, task: Task, future: Future) -> None:
        self._begun.pop(task.id, None)
        if future.error is None:
            self._done.append((task, future.value))
            self._go_on()
        elif isinstance(future.error, Exception) and self._failed is not None:
            self._done.append((task, self._failed(task, future.error)))
            self._go_on()
        else:
            sealed = self.seal()
            if not sealed.done:
                sealed.fail(future.error)

    def _go_on(self) -> None:
        """Hand results on, and begin what needed no other."""
        done, left = self._done, self._left
        while done:
            task, result = done[0]
            self.results[task.id] = result
            if self._told is not None:
                self._told(task, result)
            for follower in self._after.pop(task.id, ()):
                if follower in left:
                    left[follower] -= 1
                    if left[follower] == 0:
                        del left[follower]
                        self._begin(self.tasks[follower])
            done.popleft()
        if self._sealed is not None:
            self._end_if_whole()

    def _end_if_whole(self) -> None:
        sealed = self._sealed
        if sealed is not None and not sealed.done and len(self.results) == len(self.tasks):
            sealed.set({id: self.results[id] for id in self.tasks})


def layers(deps: Mapping[int, Sequence[int]]) -> list[list[int]]:
    """Ids by level: one more than the highest level of those an id needs. Raises UsageError for a cycle."""
    level: dict[int, int] = {}
    left = {id: len(needs) for id, needs in deps.items()}
    after: dict[int, list[int]] = {}
    for id, needs in deps.items():
        for need in needs:
            after.setdefault(need, []).append(id)
    ready = deque(id for id, num in left.items() if num == 0)
    while ready:
        id = ready.popleft()
        level[id] = 1 + max((level[need] for need in deps[id]), default=-1)
        for follower in after.get(id, ()):
            left[follower] -= 1
            if left[follower] == 0:
                ready.append(follower)
    if len(level) < len(deps):
        stuck = ", ".join(str(id) for id in deps if id not in level)
        raise UsageError(f"tasks {stuck} need each other", expected="no cycle")
    found: list[list[int]] = [[] for _ in range(max(level.values(), default=-1) + 1)]
    for id in deps:
        found[level[id]].append(id)
    return found


def critical_path_s(deps: Mapping[int, Sequence[int]], takes_s: Mapping[int, float]) -> float:
    """What the longest chain takes: no number of workers is faster."""
    end_s: dict[int, float] = {}
    for layer in layers(deps):
        for id in layer:
            end_s[id] = max((end_s[need] for need in deps[id]), default=0.0) + takes_s[id]
    return max(end_s.values(), default=0.0)


def fill(value: Any, results: Mapping[int, Any]) -> Any:
    """A value with results where its Slots are. Raises UsageError for a path that a result does not have."""
    if isinstance(value, Slot):
        return value.of(results[value.id])
    if isinstance(value, Template):
        return "".join(
            part if isinstance(part, str) else str(part.of(results[part.id])) for part in value.parts
        )
    if isinstance(value, list | tuple):
        return type(value)(fill(part, results) for part in value)
    if isinstance(value, dict):
        return {key: fill(part, results) for key, part in value.items()}
    return value


def _needs(args: tuple[Any, ...]) -> tuple[int, ...]:
    """The tasks whose results are in there, each once. Plain values, which most are, are not looked into."""
    found: list[int] = []
    for arg in args:
        kind = type(arg)
        if kind is Slot:
            found.append(arg.id)
        elif kind not in PLAIN:
            found += _slots(arg)
    return tuple(dict.fromkeys(found)) if len(found) > 1 else tuple(found)


def _filled(arg: Any, results: Mapping[int, Any]) -> Any:
    """`fill`, without looking into what is plain."""
    kind = type(arg)
    if kind is Slot and not arg.path:
        return results[arg.id]
    return arg if kind in PLAIN else fill(arg, results)


def _slots(value: Any) -> Iterator[int]:
    if isinstance(value, Slot):
        yield value.id
    elif isinstance(value, Template):
        for part in value.parts:
            yield from _slots(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _slots(part)
    elif isinstance(value, dict):
        yield from _slots([*value.values()])


def _said(value: Any) -> str:
    if isinstance(value, Slot):
        return str(value)
    if isinstance(value, Template):
        return f'"{value}"'
    return repr(value)
