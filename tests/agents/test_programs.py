"""Programs: answers through a model of the engine, calls no later than they can begin, and nothing that a
plan or a tool does ends a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import pytest

from lightwork.agents.chat_model import ChatRequest, ToolCall
from lightwork.agents.context import Budget, Context, Result
from lightwork.agents.engine_model import open_model
from lightwork.agents.policies import Policy, call_text
from lightwork.agents.profile_model import Profile, ProfileModel
from lightwork.agents.programs import Program
from lightwork.agents.programs.llm_compiler import LlmCompiler
from lightwork.agents.programs.parallel_calls import ParallelCalls
from lightwork.agents.programs.react import React
from lightwork.agents.tool import Tool, Toolbox
from lightwork.agents.world_tools import world_tools
from lightwork.agents.worlds.plan_world import PlanWorld
from lightwork.runtime.effects import Sleep
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.plan import Plan

HEIGHTS = {f"peak{i}": 100 + 37 * i % 901 for i in range(40)}


def tool(name: str, fn: Callable[..., Any], *names: str, **settings: Any) -> Tool:
    properties = {key: {"type": "string"} for key in names}
    parameters = {"type": "object", "properties": properties}
    return Tool(name=name, description=f"{name}.", parameters=parameters, fn=fn, **settings)


def tools(**settings: Any) -> list[Tool]:
    return [
        tool("height", lambda peak: HEIGHTS[peak], "peak", **settings),
        tool("maximum", lambda values: max(values), "values", **settings),
    ]


def run(
    program: Program, question: str, policy: Policy | Mapping[str, Policy], tools: list[Tool], **more: Any
):
    """A run in virtual time: its result and its trace."""
    profile = more.pop("profile", Profile(ttft_s=1.0, tokens_per_s=10.0))
    kernel = Kernel(trace=Trace("test"))
    policies = policy if isinstance(policy, Mapping) else {"": policy}
    models = {role: ProfileModel(kernel, profile, said) for role, said in policies.items()}
    context = Context(kernel, models, Toolbox.of(kernel, tools), **more)
    result: Result = kernel.run(program.run(context, question))
    assert kernel.trace is not None
    return result, kernel, [span for span in kernel.trace.spans if span.kind == "tool"]


def script(*answers: str) -> Policy:
    """Says these things, one for each conversation that it has not seen before."""
    known: dict[tuple[str, ...], str] = {}

    def policy(request: ChatRequest, said: str) -> str:
        asked = tuple(message.content for message in request.messages)
        return known.setdefault(asked, answers[min(len(known), len(answers) - 1)])

    return policy


def compiler(plan: str, *answers: str) -> dict[str, Policy]:
    return {"planner": script(plan), "joiner": script(*answers)}


def compare(request: ChatRequest, said: str) -> str:
    """Plans and joins a comparison: the teacher of 113 questions."""
    last = request.messages[-1].content
    if "Observations:" in last:
        return f"Thought: seen.\nAction: Finish({last.rstrip().rpartition(chr(10))[2].strip()})"
    peaks = last.removeprefix("Question: which height is the greatest of ").removesuffix("?").split(", ")
    lines = [f'{i}. height("{peak}")' for i, peak in enumerate(peaks, 1)]
    ids = ", ".join(f"${i}" for i in range(1, len(peaks) + 1))
    return "\n".join([*lines, f"{len(peaks) + 1}. maximum([{ids}])", f"{len(peaks) + 2}. join()"])


def test_a_hundred_and_thirteen_comparisons_through_the_engine_are_right() -> None:
    rng, kernel = Random(0), Kernel()
    model = open_model(Plan(max_seqs=16), kernel, compare)
    branches = [2] * 21 + [3] * 31 + [4] * 31 + [5] * 30
    drawn = [rng.sample(sorted(HEIGHTS), num) for num in branches]

    async def ask(peaks: list[str]) -> Result:
        context = Context(kernel, {"": model}, Toolbox.of(kernel, tools(inline=True)))
        return await LlmCompiler().run(context, f"which height is the greatest of {', '.join(peaks)}?")

    results = kernel.run(kernel.gather(*[kernel.spawn(ask(peaks)) for peaks in drawn]))
    assert [result.answer for result in results] == [str(max(HEIGHTS[p] for p in peaks)) for peaks in drawn]
    assert {result.turns for result in results} == {2}
    assert [len(result.observations) for result in results] == [num + 1 for num in branches]


def test_a_call_begins_with_its_line_or_with_what_it_needs() -> None:
    plan = "1. slow(1)\n2. quick(2)\n3. quick($1)\n4. quick($2)\n5. join()"
    takes = [tool("slow", lambda x: x, "x", cost_s=5.0), tool("quick", lambda x: x, "x", cost_s=0.5)]
    profile = Profile(ttft_s=1.0, tokens_per_s=10.0, piece_tokens=1)
    _, kernel, spans = run(LlmCompiler(), "?", compiler(plan, "Action: Finish(done)"), takes, profile=profile)

    def line_s(number: int) -> float:
        """When the token with the newline of a line has come; a token is four characters."""
        end = sum(len(line) + 1 for line in plan.split("\n")[:number])
        tokens = -(-len(plan) // 4)
        return 1.0 + next(t for t in range(1, tokens + 1) if len(plan) * t // tokens >= end) / 10.0

    begins = sorted((span.start_s, span.end_s) for span in spans)
    ends = {1: line_s(1) + 5.0, 2: line_s(2) + 0.5}
    expected = [line_s(1), line_s(2), max(line_s(4), ends[2]), max(line_s(3), ends[1])]
    assert [start_s for start_s, _ in begins] == pytest.approx(expected, abs=1e-9)
    joined_s = ends[1] + 0.5  # the last observation
    assert kernel.now() == pytest.approx(joined_s + 1.0 + 0.5)  # and the joiner's five tokens


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ("1. fly(1)\n2. join()", "there is no tool 'fly'"),
        ("1. height('peak1')\n1. height('peak2')\n3. join()", "there is a call 1 already"),
        ("1. height($2)\n2. height('peak1')\n3. join()", "which is not before it"),
        ("1. height($1)\n2. join()", "needs itself"),
        ("1. height('peak1')", "ends without join()"),
        ("1. height('peak1', 2, 3)\n2. join()", "was given 3 arguments"),
        ("1. height('nowhere')\n2. join()", "failed: KeyError"),
        ("1. height('nowhere')\n2. height($1)\n3. join()", "call 1, which this one needs, failed"),
        ("1. hang()\n2. join()", "did not answer in 60 s"),
        ("\n".join(f"{i}. height('peak1')" for i in range(1, 10_001)), "more than 128 calls"),
        ("I do not know what to do.", "neither"),
        ("", "ends without join()"),
    ],
)
def test_a_bad_plan_is_told_to_the_joiner(plan: str, told: str) -> None:
    heard: list[str] = []

    def joiner(request: ChatRequest, said: str) -> str:
        heard.append(request.messages[-1].content)
        return "Action: Finish(none)"

    async def hang() -> None:
        await Sleep(1e9)

    policies = {"planner": lambda request, said: plan, "joiner": joiner}
    result, _, _ = run(LlmCompiler(), "?", policies, [*tools(), tool("hang", hang)])
    assert result.answer == "none"
    assert told in heard[-1]


def test_another_plan_knows_what_was_seen_and_goes_on_from_it() -> None:
    asked: list[str] = []
    plans = script("1. height('peak1')\n2. join()", "2. height('peak2')\n3. maximum([$1, $2])\n4. join()")

    def planner(request: ChatRequest, said: str) -> Any:
        asked.append(request.messages[-1].content)
        return plans(request, said)

    joiner = script(
        "Thought: one is few.\nAction: Replan(peak2 is missing)", "Action: Finish(the 2nd (f(x)))"
    )
    result, _, spans = run(LlmCompiler(), "?", {"planner": planner, "joiner": joiner}, tools())
    assert result.answer == "the 2nd (f(x))"
    assert [seen.value for seen in result.observations] == [137, 174, 174]
    assert "1. height('peak1')\n  137" in asked[-1]
    assert "Thought: peak2 is missing" in asked[-1]
    assert (len(spans), result.turns) == (3, 4)


def test_plans_are_bounded() -> None:
    policies = {
        "planner": lambda request, said: "join()",
        "joiner": lambda request, said: "Action: Replan(more)",
    }
    result, _, _ = run(LlmCompiler(max_replans=2), "?", policies, tools())
    assert (result.answer, result.turns) == ("", 6)
    assert result.why == "no answer after 2 more plans: more"


def test_a_budget_ends_a_run_with_its_reason() -> None:
    policies = compiler("1. height('peak1')\n2. join()", "Action: Replan(a)", "Action: Replan(b)")
    result, _, _ = run(LlmCompiler(max_replans=9), "?", policies, tools(), budget=Budget(turns=3))
    assert result.answer == ""
    assert "used its 3 turns" in result.why
    assert [seen.value for seen in result.observations] == [137]


def by_calls(request: ChatRequest, said: str) -> str:
    """Calls height of each peak of the question, as many at once as it may, then answers."""
    wanted = next(m for m in request.messages if m.role == "user").content.split()
    seen = [m for m in request.messages if m.role == "tool"]
    if len(seen) < len(wanted):
        return call_text(*[ToolCall("", "height", {"peak": peak}) for peak in wanted[len(seen) :]])
    return f"{max(int(m.content) for m in seen)}"


@pytest.mark.parametrize(("program", "turns"), [(ParallelCalls(), 2), (React(), 5)])
def test_calls_of_a_chat_api(program: Program, turns: int) -> None:
    result, _, spans = run(program, "peak1 peak2 peak3 peak4", by_calls, tools(cost_s=2.0))
    assert (result.answer, result.turns, len(spans)) == ("248", turns, 4)
    together = {span.start_s for span in spans}
    assert len(together) == (1 if turns == 2 else 4)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_built_in_planner_drives_tools(level: int) -> None:
    rng, kernel = Random(level), Kernel()
    model = open_model("tiny:llama", kernel)
    episodes = [PlanWorld(split="heldout").sample(rng, level) for _ in range(8)]

    async def ask(episode: Any) -> Result:
        context = Context(kernel, {"": model}, Toolbox.of(kernel, world_tools(episode)), trained=True)
        return await LlmCompiler().run(context, episode.question)

    results = kernel.run(kernel.gather(*[kernel.spawn(ask(episode)) for episode in episodes]))
    right = 0
    for episode, result in zip(episodes, results, strict=True):
        assert result.messages[0].content == episode.prompt
        verdict = episode.check(result.messages[-1].content)
        right += verdict.answered
        if verdict.exact:
            assert result.answer == str(result.observations[-1].value)
    assert right >= 6
