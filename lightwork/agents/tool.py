"""Tools: functions that models may call, and the one place where calls are checked, limited and carried out.

Whatever a tool does, its caller gets an Observation: a wrong name, arguments that do not fit, an error, a
deadline, an answer too long. Nothing a tool does ends a program.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lightwork._listing import nearest
from lightwork.agents.chat_model import ToolCall
from lightwork.errors import LightworkError, SpecError, UsageError
from lightwork.runtime.effects import Acquire, Release
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.resources import Store
from lightwork.runtime.trace import Span

ToolEffect = Literal["pure", "read", "write", "irreversible"]
"""What a call changes: nothing and the answer is always the same; nothing; something; for good."""
LONGEST_ANSWER = 1 << 20
"""Characters of an observation; a longer answer is cut, and says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """parameters: JSON schema of its arguments, an object. fn: called with them by name; it may be `async`,
    then it awaits kernel futures and effects. limit: calls at once, 0 any number. deadline_s: after which a
    call is given up. cost_s: what a call takes on a virtual clock, where fn runs at once.
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

    def bind(self, values: Sequence[Any]) -> dict[str, Any]:
        """Arguments by position as arguments by name. Raises UsageError if there are too many."""
        names = [*self.parameters.get("properties", {})]
        if len(values) > len(names):
            raise UsageError(
                f"{self.name} was given {len(values)} arguments", expected=f"({', '.join(names)})"
            )
        return dict(zip(names, values, strict=False))


@dataclass(frozen=True, slots=True)
class Observation:
    """What became of a call. value: what the tool returned, as it is. error: "" if it went well."""

    call: ToolCall
    value: Any = None
    error: str = ""

    @property
    def text(self) -> str:
        """As a model reads it."""
        if self.error:
            return f"error: {self.error}"
        text = self.value if isinstance(self.value, str) else _json(self.value)
        if len(text) <= LONGEST_ANSWER:
            return text
        return f"{text[:LONGEST_ANSWER]} ... (cut: {len(text):,} characters, {LONGEST_ANSWER:,} are shown)"


@dataclass(slots=True)
class Toolbox:
    """The tools of a program, on one kernel. Raises SpecError if two have one name."""

    kernel: Kernel
    tools: Mapping[str, Tool]
    calls: int = field(default=0, init=False)
    _slots: dict[str, Store] = field(default_factory=dict, init=False)

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
        return self.kernel.spawn(self._observe(call), name=f"{call.name} {call.id}")

    async def _observe(self, call: ToolCall) -> Observation:
        tool = self.tools.get(call.name)
        if tool is None:
            known = nearest(call.name, self.tools) or ", ".join([*self.tools][:8])
            return Observation(call, error=f"there is no tool {call.name!r}; there is {known}")
        start_s = self.kernel.now()
        if tool.limit:
            slots = self._slots.setdefault(tool.name, Store(tool.name, tool.limit))
            await Acquire(slots, 1)
        try:
            value = await self.kernel.timeout(self._start(tool, call), tool.deadline_s)
        except TimeoutError:
            return Observation(call, error=f"{call.name} did not answer in {tool.deadline_s:g} s")
        except LightworkError as error:
            return Observation(call, error=str(error))
        except Exception as error:
            return Observation(call, error=f"{call.name} failed: {type(error).__name__}: {error}")
        finally:
            if tool.limit:
                await Release(slots, 1)
            if self.kernel.trace is not None:
                self.kernel.trace.add(Span("tools", "tool", call.name, start_s, self.kernel.now()))
        return Observation(call, value)

    def _start(self, tool: Tool, call: ToolCall) -> Future:
        if inspect.iscoroutinefunction(tool.fn):
            return self.kernel.spawn(tool.fn(**call.arguments), name=tool.name)
        if tool.inline:
            return self.kernel.attempt(lambda: tool.fn(**call.arguments))
        return self.kernel.offload(lambda: tool.fn(**call.arguments), cost_s=tool.cost_s)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)
