"""Game of 24, simulated: a tree of thoughts by one model call after another, and by plans of LLMCompiler.

How often a model is asked is in the log that Tree of Thoughts' authors published (github.com/princeton-nlp/
tree-of-thought-llm, GPT-4, 100 puzzles): `LEVELS` are its means. It counts 5,479 tokens written for a puzzle,
each judgement three times, which run side by side here; a line of 26 characters is taken as 13 tokens, and
21 are left for a judgement.

LLMCompiler's program is not published. Assumed: its plan has a line that proposes for each state, one that
judges what that gave, all at once, and one that keeps the best; each level is a plan, since the states of the
next are not known before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightwork.agents.chat_model import ChatRequest, Message
from lightwork.agents.context import Budget, Context, Result
from lightwork.agents.policies import Policy
from lightwork.agents.profile_model import CHARS_PER_TOKEN, Profile
from lightwork.agents.programs import Program
from lightwork.agents.tool import Tool
from lightwork.claims._profiled import Models, simulated_run, tool
from lightwork.runtime.kernel import Kernel

LEVELS = ((1, 9), (5, 26), (5, 16), (5, 19))
"""States that thoughts are proposed for, and thoughts that are judged, of each level."""
THOUGHT = "2 + 8 = 10 (left: 8 10 14)"
THOUGHT_TOKENS, JUDGED_TOKENS = 13, 21
PROPOSE, JUDGE = "Possible next steps:", "Can these reach 24?"
KEEP = "keep("


def shares(level: int) -> list[int]:
    """Thoughts of each state of a level."""
    states, thoughts = LEVELS[level]
    return [thoughts // states + (i < thoughts % states) for i in range(states)]


def says(request: ChatRequest, said: str) -> str:
    """What the model writes that proposes and judges."""
    asked, _, number = request.messages[-1].content.partition("\n")
    tokens = int(number) * THOUGHT_TOKENS if asked == PROPOSE else JUDGED_TOKENS
    return "x" * (tokens * CHARS_PER_TOKEN)


def plans(request: ChatRequest, said: str) -> str:
    """The next level, after those that the previous plan kept."""
    level = request.messages[-1].content.count(KEEP)
    first = 1 + sum(2 * len(shares(i)) + 1 for i in range(level))
    lines: list[str] = []
    for number in shares(level):
        lines.append(f'{first + len(lines)}. propose("{THOUGHT}", {number})')
        lines.append(f"{first + len(lines)}. judge(${first + len(lines) - 1}, {number})")
    judged = ", ".join(f"${first + i}" for i in range(1, len(lines), 2))
    lines.append(f"{first + len(lines)}. {KEEP}[{judged}])")
    return "\n".join([*lines, f"{first + len(lines)}. join()"])


def joins(request: ChatRequest, said: str) -> str:
    left = request.messages[-1].content.count(KEEP) < len(LEVELS)
    return f"Thought: these are the best.\nAction: {'Replan(not 24 yet)' if left else f'Finish({THOUGHT})'}"


@dataclass(frozen=True, slots=True)
class TreeOfThoughts:
    """The levels one after another, every call by itself, as its authors' program has it."""

    async def run(self, context: Context, question: str) -> Result:
        for level in range(len(LEVELS)):
            for number in shares(level):
                await context.ask(proposing(number))
            for _ in range(LEVELS[level][1]):
                await context.ask(judging())
        return Result(THOUGHT, usage=context.usage, turns=context.turns)


def proposing(number: int) -> ChatRequest:
    return ChatRequest((Message("user", f"{PROPOSE}\n{number}"),))


def judging() -> ChatRequest:
    return ChatRequest((Message("user", JUDGE),))


@dataclass(frozen=True, slots=True)
class Puzzle:
    """What one took. asked: how often the model that proposes and judges."""

    seconds: float
    asked: int


def puzzle(program: Program, profile: Profile) -> Puzzle:
    """One in virtual time."""
    said: Mapping[str, Policy] = {"": says, "planner": plans, "joiner": joins}
    done = simulated_run(program, "4 5 6 10", profile, said, _tools, budget=Budget(turns=1000, calls=1000))
    assert done.result.answer == THOUGHT
    return Puzzle(done.seconds, done.models[""].turns)


def _tools(kernel: Kernel, models: Models) -> list[Tool]:
    async def propose(state: str, number: int) -> str:
        await models[""].stream(proposing(number)).reply()
        return THOUGHT

    async def judge(thoughts: str, number: int) -> str:
        await kernel.gather(*(kernel.spawn(models[""].stream(judging()).reply()) for _ in range(number)))
        return "likely"

    async def keep(judged: list[str]) -> str:
        return THOUGHT

    return [tool(propose), tool(judge), tool(keep)]
