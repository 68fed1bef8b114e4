"""Questions as programs of agents meet them, simulated: how many searches, whether a calculation follows, and
what a model writes for them as text.

Thoughts, calls and answers are of the length that they have here in English; a token is four characters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lightwork.agents.chat_model import ChatModel, ChatRequest, ToolCall, Usage
from lightwork.agents.context import Context
from lightwork.agents.policies import Policy, call_text
from lightwork.agents.profile_model import Profile, ProfileModel
from lightwork.agents.programs import Program
from lightwork.agents.programs.react import React
from lightwork.agents.tool import Tool, Toolbox
from lightwork.agents.trajectories import FINISH
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace

THOUGHT = "I look up {} next."
ENTITY = "The Long Title of Film {}"
ANSWER = f"Comparing what was found for each of them, the answer is {ENTITY.format(1)}."
PARAGRAPH = 1000
"""Characters of what a search finds."""


@dataclass(frozen=True, slots=True)
class Errand:
    """A question that takes so many searches, none of which needs another, and perhaps a calculation with
    what they found."""

    searches: int
    calculates: bool = False

    @property
    def question(self) -> str:
        return f"Which of {', '.join(map(ENTITY.format, range(self.searches)))} is the greatest?"

    def plan(self, request: ChatRequest, said: str) -> str:
        """What a planner writes."""
        lines = [f'{i + 1}. search("{ENTITY.format(i)}")' for i in range(self.searches)]
        if self.calculates:
            ids = ", ".join(f"${i + 1}" for i in range(self.searches))
            lines.append(f'{len(lines) + 1}. calculate("the greatest of them", [{ids}])')
        return "\n".join([*lines, f"{len(lines) + 1}. join()"])

    def join(self, request: ChatRequest, said: str) -> str:
        return f"Thought: {ANSWER}\nAction: Finish({ENTITY.format(1)})"

    def call(self, request: ChatRequest, said: str) -> str:
        """What a model writes that calls tools turn by turn: one at once if it is instructed as by React, and
        `Finish` in the end where that is a tool."""
        seen = sum(message.role == "tool" for message in request.messages)
        alone = request.messages[0].content == React().instructions
        if seen < self.searches:
            wanted = range(seen, seen + 1 if alone else self.searches)
            thought = THOUGHT.format(ENTITY.format(seen)) if alone else ""
            calls = [ToolCall("", "search", {"query": ENTITY.format(i)}) for i in wanted]
            return thought + call_text(*calls)
        if self.calculates and seen == self.searches:
            given = ToolCall("", "calculate", {"what": "the greatest of them", "context": []})
            return (THOUGHT.format("the greatest of them") if alone else "") + call_text(given)
        if any(tool["name"] == FINISH for tool in request.tools):
            return call_text(ToolCall("", FINISH, {"answer": ANSWER}))
        return ANSWER


@dataclass(frozen=True, slots=True)
class Spent:
    """What a run took."""

    seconds: float
    cost: float
    usage: Usage
    turns: int


def run(
    program: Program, errand: Errand, profile: Profile, tool_s: float, trace: Trace | None = None
) -> Spent:
    """One run in virtual time. tool_s: what a call takes. trace: gets its turns and calls."""
    kernel = Kernel(trace=trace)
    policies: Mapping[str, Policy] = {"": errand.call, "planner": errand.plan, "joiner": errand.join}
    models = {role: ProfileModel(kernel, profile, said) for role, said in policies.items()}
    toolbox = Toolbox.of(
        kernel,
        [
            _tool(
                "search", "Looks it up in an encyclopedia.", lambda query: query.ljust(PARAGRAPH, "."), tool_s
            ),
            _tool("calculate", "Calculates.", lambda what, context: ENTITY.format(1), tool_s),
        ],
    )
    talking: Mapping[str, ChatModel] = models
    result = kernel.run(program.run(Context(kernel, talking, toolbox), errand.question))
    assert result.answer
    assert len(result.observations) == errand.searches + errand.calculates
    cost = sum(model.cost for model in models.values())
    return Spent(kernel.now(), cost, result.usage, result.turns)


def _tool(name: str, description: str, fn: Callable[..., str], cost_s: float) -> Tool:
    properties = {key: {"type": "string"} for key in fn.__code__.co_varnames}
    parameters = {"type": "object", "properties": properties, "required": [*properties]}
    return Tool(name=name, description=description, parameters=parameters, fn=fn, cost_s=cost_s)
