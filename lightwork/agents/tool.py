"""Tools: functions that models may call, and the one place where calls are checked, limited and carried out.

Whatever a tool does, its caller gets an Observation: a wrong name, arguments that do not fit, an error, a
deadline, an answer too long. Nothing a tool does ends a program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

from lightwork._listing import nearest
from lightwork.agents.chat_model import ToolCall
from lightwork.agents.quiet import Note
from lightwork.agents.shown_values import shown
from lightwork.agents.tool_runs import Slots, Tried, start
from lightwork.errors import SpecError, UsageError
from lightwork.runtime.futures import CancelledError, Future
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Span

ToolEffect = Literal["pure", "read", "write", "irreversible"]
"""What a call changes: nothing and the answer is always the same; nothing; something; for good."""
SHOWN = 500
"""Characters of what a model wrote that cannot be read, as it is told of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """parameters: JSON schema of its arguments, an object. fn: called with them by name; it may be `async`,
    then it awaits kernel futures and effects. limit: calls at once, 0 any number. deadline_s: after which a
    call is given up, inf: never. cost_s: what a call takes on a virtual clock, where fn runs at once.
    inline: fn is over before a thread would wake, and runs on the kernel's own.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    fn: Callable[..., Any]
    effect: ToolEffect = "read"
    limit: int = 0
    deadline_s: float = 60.0
    cost_s: float = 0.0
    inline: bool = False

    def schema(self) -> dict[str, Any]:
        """As a ChatRequest lists it."""
        return {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}

    @property
    def names(self) -> list[str]:
        """Of its parameters, in their order."""
        return [*self.parameters.get("properties", {})]

    def bind(self, values: Sequence[Any]) -> dict[str, Any]:
        """Arguments by position as arguments by name. Raises UsageError if there are too many."""
        names = self.names
        if len(values) > len(names):
            raise UsageError(
                f"{self.name} was given {len(values)} arguments", expected=f"({', '.join(names)})"
            )
        return dict(zip(names, values, strict=False))


@dataclass(frozen=True, slots=True)
class Observation:
    """What became of a call. value: what the tool returned, as it is. error: "" if it went well. note: what
    it printed. told: the value as a model reads it, where that has been formatted already.
    """

    call: ToolCall
    value: Any = None
    error: str = ""
    note: str = ""
    told: str | None = None

    @property
    def text(self) -> str:
        """As a model reads it."""
        if self.error:
            return f"error: {self.error}"
        return shown(self.value) if self.told is None else self.told


@dataclass(slots=True)
class Toolbox:
    """The tools of a program, on one kernel. told: called with each observation when it is there. Raises
    SpecError if two have one name.
    """

    kernel: Kernel
    tools: Mapping[str, Tool]
    told: Callable[[Observation], object] | None = None
    calls: int = field(default=0, init=False)
    _slots: dict[str, Slots] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, kernel: Kernel, tools: Iterable[Tool]) -> Toolbox:
        found: dict[str, Tool] = {}
        for tool in tools:
            if tool.name in found:
                raise SpecError(f"two tools are named {tool.name!r}", expected="each name once")
            found[tool.name] = tool
        return cls(kernel, found)

    def schemas(self) -> tuple[dict[str, Any], ...]:
        return tuple(tool.schema() for tool in self.tools.values())

    def call(self, call: ToolCall) -> Future:
        """Start it; the future's value is its Observation, whatever happens."""
        self.calls += 1
        return self.kernel.spawn(self._tell(call), name=f"{call.name} {call.id}")

    async def _tell(self, call: ToolCall) -> Observation:
        observation = await self._observe(call)
        if self.told is not None:
            self.told(observation)
        return observation

    async def _observe(self, call: ToolCall) -> Observation:
        tool = self.tools.get(call.name)
        if tool is None:
            known = nearest(call.name, self.tools) or ", ".join([*self.tools][:8])
            return Observation(call, error=f"there is no tool {call.name!r}; there is {known}")
        if call.raw:
            why = f"the arguments of {call.name} are no JSON object: {call.raw[:SHOWN]}"
            return Observation(call, error=why)
        start_s, note = self.kernel.now(), Note()
        try:
            tried = await self._carry_out(tool, call, note)
        except TimeoutError as late:
            return Observation(call, error=str(late), note=str(note))
        finally:
            if self.kernel.trace is not None:
                end_s, about = self.kernel.now(), {"id": call.id}
                self.kernel.trace.add(Span("tools", "tool", call.name, start_s, end_s, args=about))
        return Observation(call, tried.value, tried.error, str(note), tried.told)

    async def _carry_out(self, tool: Tool, call: ToolCall, note: Note) -> Tried:
        """Raises TimeoutError if there is no answer in time, saying why."""
        slots = self._slots.get(tool.name)
        if slots is None and tool.limit:
            slots = self._slots[tool.name] = Slots(self.kernel, tool.name, tool.limit)
        if slots is not None:
            await slots.take(tool.deadline_s)
        running = start(self.kernel, tool, call.arguments, note)
        if slots is not None:
            running.ended.add_callback(lambda ended: slots.give())
        try:
            tried: Tried = await self._within(tool.deadline_s, running.answer)
        except TimeoutError:
            raise TimeoutError(f"{tool.name} did not answer in {tool.deadline_s:g} s") from None
        return tried

    async def _within(self, deadline_s: float, answer: Future) -> Any:
        """An answer is given up with its caller."""
        if deadline_s < inf:
            return await self.kernel.timeout(answer, deadline_s)
        try:
            return await answer
        except CancelledError:
            self.kernel.cancel(answer)
            raise
