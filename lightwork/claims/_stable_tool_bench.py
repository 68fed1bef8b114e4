"""StableToolBench as DTA-Llama's authors ran it: how many steps four methods took, and how long each took.

One profile of a 7B model that is served without batching, one tool latency: both the same for all methods.
Only that latency is fitted, to ReAct's average; the other averages follow from what the methods do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from math import floor
from random import Random
from statistics import mean
from typing import Literal

from lightwork.agents.chat_model import ChatRequest, ToolCall
from lightwork.agents.context import Budget, Context
from lightwork.agents.policies import Policy, call_text
from lightwork.agents.profile_model import CHARS_PER_TOKEN, Profile, ProfileModel
from lightwork.agents.programs import Program
from lightwork.agents.programs.dta import Dta
from lightwork.agents.programs.llm_compiler import FINAL, LlmCompiler
from lightwork.agents.programs.react import React
from lightwork.agents.tool import Tool, Toolbox
from lightwork.agents.trajectories import FINISH
from lightwork.runtime.effects import Sleep
from lightwork.runtime.kernel import Kernel

Method = Literal["ReAct", "DFSDT", "LLMCompiler", "DTA"]


@dataclass(frozen=True, slots=True)
class Row:
    """For each of the six sets of questions, I1-Inst to I3-Inst."""

    steps: tuple[float, ...]
    latency_s: tuple[float, ...]


PUBLISHED: dict[Method, Row] = {
    "ReAct": Row((3.42, 3.47, 3.50, 3.67, 3.63, 3.64), (34, 40, 35, 39, 38, 46)),
    "DFSDT": Row((8.09, 8.51, 8.10, 10.20, 9.93, 9.23), (76, 103, 90, 110, 124, 120)),
    "LLMCompiler": Row((5.48, 5.56, 6.07, 5.36, 5.68, 5.62), (58, 67, 61, 83, 71, 69)),
    "DTA": Row((2.41, 2.41, 2.51, 2.32, 2.34, 2.48), (29, 33, 28, 29, 30, 40)),
}
THOUGHT, CALL, ANSWER = 60, 45, 110
"""Tokens."""
PROFILE = Profile(ttft_s=0.5, tokens_per_s=25.0, piece_tokens=5)
QUESTIONS = 100
"""Of each set."""


def calls_of_a_question() -> float:
    """What ReAct calls: a call in each step but the last, which is Finish."""
    return mean(PUBLISHED["ReAct"].steps) - 1


def calls_of_a_turn() -> float:
    """Of DTA, if it makes as many calls as ReAct."""
    return calls_of_a_question() / (mean(PUBLISHED["DTA"].steps) - 1)


def tool_s() -> float:
    """Mean latency of a tool, so that ReAct's average comes out."""
    turn_s = PROFILE.ttft_s + (THOUGHT + CALL) / PROFILE.tokens_per_s
    last_s = PROFILE.ttft_s + ANSWER / PROFILE.tokens_per_s
    return (mean(PUBLISHED["ReAct"].latency_s) - last_s) / calls_of_a_question() - turn_s


@cache
def seconds(method: Method, seed: int, tool_mean_s: float | None = None) -> tuple[float, ...]:
    """Mean latency on each set. tool_mean_s: other tools than those fitted."""
    takes_s = tool_s() if tool_mean_s is None else tool_mean_s
    rng = Random(f"{method} {seed}")
    return tuple(
        mean(_question_s(method, steps, takes_s, rng) for _ in range(QUESTIONS))
        for steps in PUBLISHED[method].steps
    )


def _question_s(method: Method, steps: float, tool_mean_s: float, rng: Random) -> float:
    kernel = Kernel(seed=rng.getrandbits(32))

    async def api(q: str) -> str:
        await Sleep(float(kernel.rng("tools").exponential(tool_mean_s)))
        return "found"

    schema = {"type": "object", "properties": {"q": {"type": "string"}}}
    tool = Tool(name="api", description="", parameters=schema, fn=api, deadline_s=1e6)
    program, policies = _played(method, steps, rng)
    models = {role: ProfileModel(kernel, PROFILE, policy) for role, policy in policies.items()}
    context = Context(kernel, models, Toolbox.of(kernel, [tool]), Budget(turns=64))
    result = kernel.run(program.run(context, "?"))
    assert result.answer
    return kernel.now()


def _played(method: Method, steps: float, rng: Random) -> tuple[Program, dict[str, Policy]]:
    if method == "LLMCompiler":  # a round is two steps: a plan of all calls, and a join
        rounds = _about(steps / 2, rng)
        counts = [max(1, _about(calls_of_a_question(), rng)) for _ in range(rounds)]
        return LlmCompiler(max_replans=rounds - 1), {"planner": _planner(counts), "joiner": _joiner}
    turns = _about(steps, rng)
    if method == "DTA":
        return Dta(), {"": _in_turns([_about(calls_of_a_turn(), rng) for _ in range(turns - 1)], _finish)}
    return React(), {"": _in_turns([1] * (turns - 1), lambda: _words(ANSWER))}


def _about(number: float, rng: Random) -> int:
    """An integer beside it; such integers have it as their mean."""
    return floor(number) + (rng.random() < number - floor(number))


def _words(num_tokens: int) -> str:
    return "word" * num_tokens


def _in_turns(counts: list[int], finish: Callable[[], str]) -> Policy:
    """A thought and so many calls in each turn, and then the end."""

    def says(request: ChatRequest, said: str) -> str:
        turn = sum(message.role == "assistant" for message in request.messages)
        return finish() if turn == len(counts) else _words(THOUGHT) + "".join(_calls(counts[turn]))

    return says


def _calls(count: int) -> Iterator[str]:
    bare = len(call_text(ToolCall("", "api", {"q": ""})))
    for _ in range(count):
        yield call_text(ToolCall("", "api", {"q": "x" * (CALL * CHARS_PER_TOKEN - bare)}))


def _finish() -> str:
    bare = len(call_text(ToolCall("", FINISH, {"answer": ""})))
    return call_text(ToolCall("", FINISH, {"answer": "x" * (ANSWER * CHARS_PER_TOKEN - bare)}))


def _planner(counts: list[int]) -> Policy:
    """A plan with the next round's calls; which round it is, the first id says."""
    firsts = [1 + sum(counts[:i]) for i in range(len(counts))]

    def says(request: ChatRequest, said: str) -> str:
        match = re.search(r"IDs begin with (\d+)", request.messages[0].content)
        assert match is not None
        first = int(match[1])
        count = counts[firsts.index(first)]
        lines = [f'{i}. api("{"x" * (CALL * CHARS_PER_TOKEN - 12)}")' for i in range(first, first + count)]
        return "\n".join([f"Thought: {_words(THOUGHT - 2)}", *lines, "join()"])

    return says


def _joiner(request: ChatRequest, said: str) -> str:
    if request.messages[0].content == FINAL:
        return f"Thought: fine\nAction: Finish({_words(ANSWER - 8)})"
    return f"Thought: {_words(THOUGHT - 8)}\nAction: Replan(more)"
