"""Questions as programs of agents meet them, simulated: how many searches, whether a calculation follows, and
what a model writes for them as text.

Thoughts, calls and answers are of the length that they have here in English; a token is four characters.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightwork.agents.chat_model import ChatRequest, ToolCall, Usage
from lightwork.agents.policies import call_text
from lightwork.agents.profile_model import Profile
from lightwork.agents.programs import Program
from lightwork.agents.programs.react import React
from lightwork.agents.trajectories import FINISH
from lightwork.claims._profiled import simulated_run, tool
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

    def search(query: str) -> str:
        return query.ljust(PARAGRAPH, ".")

    def calculate(what: str, context: str) -> str:
        return ENTITY.format(1)

    tools = (
        tool(search, "Looks it up in an encyclopedia.", tool_s),
        tool(calculate, "Calculates.", tool_s),
    )
    said = {"": errand.call, "planner": errand.plan, "joiner": errand.join}
    done = simulated_run(program, errand.question, profile, said, lambda kernel, models: tools, trace=trace)
    assert done.result.answer
    assert len(done.result.observations) == errand.searches + errand.calculates
    cost = sum(model.cost for model in done.models.values())
    return Spent(done.seconds, cost, done.result.usage, done.result.turns)
