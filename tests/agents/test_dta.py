"""Dta: turns of independent calls, one transcript whoever answers first, and an end in every case."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from lightwork.agents.chat_model import ChatRequest, Message, ToolCall
from lightwork.agents.context import Budget, Context, Result
from lightwork.agents.dependencies import Provenance
from lightwork.agents.layering import layered
from lightwork.agents.policies import Policy, call_text
from lightwork.agents.profile_model import Profile, ProfileModel
from lightwork.agents.programs.dta import NO_CALL, Dta
from lightwork.agents.tool import Tool, Toolbox
from lightwork.agents.trajectories import Trajectory
from lightwork.agents.world_tools import world_tools
from lightwork.agents.worlds.plan_world import PlanWorld
from lightwork.agents.worlds.turns import Comparisons, messages, serial
from lightwork.runtime.effects import Sleep
from lightwork.runtime.kernel import Kernel

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}}


def squares(*takes_s: float) -> Tool:
    """n squared, after as long as stands at place n."""

    async def square(n: int) -> int:
        if takes_s:
            await Sleep(takes_s[n])
        return n * n

    return Tool(name="square", description="", parameters=NUMBER, fn=square, effect="pure")


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall("", name, arguments)


def in_turns(*replies: str) -> Policy:
    """What the model says in each turn; the last over and over."""

    def says(request: ChatRequest, said: str) -> str:
        turn = sum(message.role == "assistant" for message in request.messages)
        return replies[min(turn, len(replies) - 1)]

    return says


def run(
    policy: Policy,
    *tools: Tool,
    dta: Dta | None = None,
    kernel: Kernel | None = None,
    trained: bool = False,
    **budget: Any,
) -> Result:
    kernel = kernel or Kernel()
    model = ProfileModel(kernel, Profile(ttft_s=1.0), policy)
    context = Context(kernel, {"": model}, Toolbox.of(kernel, tools), Budget(**budget), trained=trained)
    return kernel.run((dta or Dta()).run(context, "what are the squares?"))  # type: ignore[no-any-return]


TWO_TURNS = in_turns(
    "Three are independent. " + call_text(*(call("square", n=n) for n in range(3))),
    "One more. " + call_text(call("square", n=3)),
    call_text(call("Finish", answer="0 1 4 9")),
)


def test_a_transcript_is_the_same_whoever_answers_first():
    transcripts = set()
    orders = set()
    for shuffle in range(50):
        takes_s = [Random(f"{shuffle} {n}").random() for n in range(4)]
        orders.add(tuple(sorted(range(3), key=takes_s.__getitem__)))
        result = run(TWO_TURNS, squares(*takes_s))
        assert result.answer == "0 1 4 9"
        transcripts.add(repr(result.messages).encode())
    assert len(transcripts) == 1
    assert len(orders) == 6


def test_a_turn_waits_for_its_slowest_call():
    kernel = Kernel()
    result = run(TWO_TURNS, squares(0.5, 3.0, 1.0, 0.25), kernel=kernel)
    assert kernel.now() == pytest.approx(3 * 1.0 + 3.0 + 0.25)
    assert result.turns == 3
    assert [one.value for one in result.observations] == [0, 1, 4, 9]
    roles = [message.role for message in result.messages]
    assert roles == ["system", "user", "assistant", "tool", "tool", "tool", "assistant", "tool", "assistant"]
    assert [message.call_id for message in result.messages[3:6]] == ["call_1", "call_2", "call_3"]


def test_a_tool_that_is_not_there_is_told_and_the_run_goes_on():
    made_up = call_text(call("cube", n=2), call("square", n=2))
    result = run(in_turns(made_up, call_text(call("Finish", answer="4"))), squares())
    assert result.answer == "4"
    told = [message.content for message in result.messages if message.role == "tool"]
    assert told == ["error: there is no tool 'cube'; there is square", "4"]


def test_finish_ends_the_run_whatever_else_is_called():
    both = call_text(call("square", n=2), call("Finish", answer=" 4 "))
    result = run(in_turns(both), squares())
    assert (result.answer, result.turns, result.observations) == ("4", 1, ())
    given_up = run(in_turns(call_text(call("Finish", answer=""))), squares())
    assert (given_up.answer, given_up.why) == ("", "the model gave no answer")


def test_a_turn_without_a_call_is_told_so_and_the_budget_ends_it():
    result = run(in_turns("It is four.", call_text(call("Finish", answer="4"))), squares())
    assert result.answer == "4"
    assert Message("user", NO_CALL) in result.messages
    endless = run(in_turns("Let me think."), squares(), turns=5)
    assert (endless.answer, endless.turns) == ("", 5)
    assert "5 turns" in endless.why


def test_so_many_calls_of_a_turn_and_of_a_run():
    many = call_text(*(call("square", n=n) for n in range(4)))
    result = run(in_turns(many, call_text(call("Finish", answer="x"))), squares(), dta=Dta(most=2))
    assert [one.error for one in result.observations[:2]] == ["", ""]
    assert [one.error for one in result.observations[2:]] == ["not made: a turn has at most 2 calls"] * 2
    spent = run(in_turns(many), squares(), calls=6)
    assert (len(spent.observations), spent.answer) == (8, "")
    assert "6 calls" in spent.why


def test_a_layered_trajectory_is_said_again_with_the_same_observations():
    rng, world = Random("again"), Comparisons(world=PlanWorld())
    for i in range(20):
        one = world.sample(rng, 2 + i % 2)
        found = Kernel().run(layered(serial(one), Provenance()))
        if isinstance(found, Trajectory):
            said = [m for m in found.messages() if m.role == "assistant"]
            policy = in_turns(*(m.content + call_text(*m.calls) for m in said))
            result = run(policy, *world_tools(one))
            assert (result.answer, result.turns) == (serial(one).answer, len(found.turns) + 1)
            assert result.turns <= len(serial(one).turns) + 1
            assert {(o.call.name, str(o.call.arguments), o.value) for o in result.observations} == {
                (o.call.name, str(o.call.arguments), o.value) for o in serial(one).steps
            }


def planned(*turns: str, **budget: Any) -> Result:
    return run(in_turns(*turns), squares(), trained=True, **budget)


def test_lines_of_a_plan_are_calls_of_a_turn():
    rng, world = Random("lines"), Comparisons(world=PlanWorld())
    one = world.sample(rng, 3)
    found = Kernel().run(layered(serial(one), Provenance()))
    assert isinstance(found, Trajectory)
    said = [*messages(found, one.tools)]
    result = run(
        in_turns(*(m.content for m in said if m.role == "assistant")),
        *world_tools(one),
        trained=True,
    )
    assert result.answer == serial(one).answer
    assert [(m.role, m.content) for m in result.messages[1:]] == [(m.role, m.content) for m in said]
    assert result.messages[0].content.startswith("tools:\n- ")


def test_a_line_may_name_results_of_earlier_turns_only():
    result = planned("1. thought square 3", "2. thought square $1\n3. thought square $2", "4. join()")
    assert [(one.value, one.error != "") for one in result.observations] == [
        (9, False),
        (81, False),
        (None, True),
    ]
    assert "$2 is not known in this turn" in result.observations[2].error
    assert "the model gave no answer" not in result.why


def test_lines_that_are_no_calls_are_told_in_their_place():
    result = planned("1. thought square 3\nnonsense\n2. thought square 4", "3. join()")
    assert [one.value for one in result.observations] == [9, None, 16]
    assert result.answer == "16"
    assert "nonsense" in result.messages[3].content
    assert planned("1. join()").why == "the model gave no answer"
    assert "4 turns" in planned("nonsense", turns=4).why
