"""A plan that is carried out while it is written: each line's call begins the moment it is read and what it
needs is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightwork.agents.chat_model import ToolCall
from lightwork.agents.graph import Graph, Task
from lightwork.agents.plan_text import Bad, Join, PlanParser
from lightwork.agents.tool import Observation, Toolbox
from lightwork.errors import LightworkError, UsageError
from lightwork.runtime.kernel import Kernel


class PlanRun:
    """The calls of one plan, after those of earlier ones. most: calls.

    observations: by id. bad: lines that were no calls, each with the reason.
    """

    def __init__(
        self,
        kernel: Kernel,
        tools: Toolbox,
        *,
        most: int = 256,
        before: Mapping[int, tuple[Task, Observation]] | None = None,
    ) -> None:
        before = before or {}
        self._tools = tools
        self._graph = Graph(kernel, self._start, failed=_failed, read=_value)
        self._graph.tasks |= {id: task for id, (task, _) in before.items()}
        self._graph.results |= {id: observation for id, (_, observation) in before.items()}
        self._parser = PlanParser(most, max(before, default=0) + 1, frozenset(before))
        self.bad: list[Bad] = []

    @property
    def observations(self) -> dict[int, tuple[Task, Observation]]:
        """What there is, by id."""
        results = self._graph.results
        return {id: (task, results[id]) for id, task in self._graph.tasks.items() if id in results}

    @property
    def done(self) -> bool:
        """Whether the plan has said its end."""
        return self._parser.done

    def push(self, piece: str) -> None:
        """The next piece of the plan's text."""
        for said in self._parser.push(piece):
            self._take(said)

    async def end(self) -> dict[int, tuple[Task, Observation]]:
        """All observations, when they are there."""
        for said in self._parser.end():
            self._take(said)
        await self._graph.seal()
        return self.observations

    def cancel(self) -> None:
        self._graph.cancel()

    def _take(self, said: Task | Bad | Join) -> None:
        if isinstance(said, Bad):
            self.bad.append(said)
        elif isinstance(said, Task):
            self._graph.add(said)

    def _start(self, task: Task, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        tool = self._tools.tools.get(task.tool)
        if args and tool is not None:
            named = {**tool.bind(args), **named}
        return self._tools.call(ToolCall(str(task.id), task.tool, dict(named)))


def _value(observation: Observation) -> Any:
    if observation.error:
        raise UsageError(f"call {observation.call.id}, which this one needs, failed", expected="its result")
    return observation.value


def _failed(task: Task, error: Exception) -> Observation:
    """Of a call that could not begin."""
    if not isinstance(error, LightworkError):
        raise error
    return Observation(ToolCall(str(task.id), task.tool, {}), error=str(error))
