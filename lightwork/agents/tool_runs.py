"""How calls of a tool are carried out: on threads of their own, here, or as coroutines; and how many at once.

A call that hangs is given up at its deadline, and nobody waits for its thread any more. The tool's slot it
keeps until it has really ended: a tool with limit 1 never runs twice at once.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from threading import current_thread, main_thread
from typing import Any, NamedTuple, Protocol

from lightwork.agents.quiet import Note, Quietly, collecting
from lightwork.agents.shown_values import PLAIN, shown
from lightwork.errors import LightworkError
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel

LONGEST_ERROR = 4000


class Tried(NamedTuple):
    """What came of a call. told: the value as a model reads it, if it was formatted already. error: "" if it
    went well."""

    value: Any = None
    told: str | None = None
    error: str = ""


class Running(NamedTuple):
    """answer: a `Tried`; cancel it to give the call up. ended: when nothing of it runs any more."""

    answer: Future
    ended: Future


class Runnable(Protocol):
    """What is needed of a Tool."""

    @property
    def name(self) -> str: ...
    @property
    def fn(self) -> Callable[..., Any]: ...
    @property
    def cost_s(self) -> float: ...
    @property
    def inline(self) -> bool: ...


def start(kernel: Kernel, tool: Runnable, arguments: Mapping[str, Any], note: Note) -> Running:
    """Call the tool. What it prints goes to the note; nothing it raises goes anywhere but into the answer."""
    if inspect.iscoroutinefunction(tool.fn):
        task = kernel.spawn(_awaited(tool, arguments, note), name=tool.name)
        return Running(task, task)
    if tool.inline:
        done = kernel.attempt(_called, tool, arguments, note)
        return Running(done, done)
    ended = kernel.offload(_called, tool, arguments, note, cost_s=tool.cost_s, may_hang=True)
    answer = kernel.future(tool.name)
    ended.add_callback(partial(_hand_on, answer))
    return Running(answer, ended)


def _hand_on(answer: Future, ended: Future) -> None:
    if not answer.done:
        answer.end(ended.value, ended.error)


def _called(tool: Runnable, arguments: Mapping[str, Any], note: Note) -> Tried:
    with collecting(note):
        try:
            value = tool.fn(**arguments)
            if inspect.iscoroutine(value):
                value.close()
                return Tried(error=f"{tool.name} returned a coroutine; a tool that awaits is an `async def`")
            return Tried(value, None if tool.inline or isinstance(value, PLAIN) else shown(value))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and current_thread() is main_thread():
                raise
            return Tried(error=_why(tool, error))


async def _awaited(tool: Runnable, arguments: Mapping[str, Any], note: Note) -> Tried:
    try:
        return Tried(await Quietly(tool.fn(**arguments), note))
    except (Exception, SystemExit) as error:
        return Tried(error=_why(tool, error))


def _why(tool: Runnable, error: BaseException) -> str:
    """As a model reads it."""
    try:
        told = str(error)
    except Exception:
        told = "it cannot say why"
    if len(told) > LONGEST_ERROR:
        told = f"{told[:LONGEST_ERROR]} ... (cut)"
    if isinstance(error, LightworkError):
        return told
    return f"{tool.name} failed: {type(error).__name__}: {told}"


class Slots:
    """So many calls of a tool at once; others wait in line.

    Who waits gives up when no call has ended for as long as one may take: those that run hang, then.
    """

    def __init__(self, kernel: Kernel, name: str, limit: int) -> None:
        self._kernel, self._name, self._limit = kernel, name, limit
        self._free = limit
        self._line: deque[Future] = deque()
        self._timer: int | None = None
        self._patience_s = 0.0

    async def take(self, patience_s: float) -> None:
        """Raises TimeoutError."""
        if self._free:
            self._free -= 1
            return
        turn = self._kernel.future(f"a turn of {self._name}")
        self._line.append(turn)
        self._patience_s = patience_s
        if self._timer is None:
            self._wind()
        try:
            await turn
        except BaseException:
            if turn in self._line:
                self._line.remove(turn)
            elif turn.error is None:  # its turn came while its caller was being cancelled
                self.give()
            raise

    def give(self) -> None:
        if self._timer is not None:
            self._kernel.drop(self._timer)
            self._timer = None
        if self._line:
            self._line.popleft().set()
        else:
            self._free += 1
        if self._line:
            self._wind()

    def _wind(self) -> None:
        if self._patience_s < inf:
            self._timer = self._kernel.at(self._kernel.now() + self._patience_s, self._ring)

    def _ring(self) -> None:
        self._timer = None
        line, self._line = self._line, deque()
        those = f"all {self._limit} calls before it hang" if self._limit > 1 else "the call before it hangs"
        for turn in line:
            turn.fail(TimeoutError(f"{self._name} was not started: {those}"))
