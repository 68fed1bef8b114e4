"""The system's calls: queued before their resource, carried out, recorded; programs do not notice."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from lightwork.agents.aios.syscall import Syscall
from lightwork.agents.aios.system import AIOS, Agent
from lightwork.agents.chat_model import ChatRequest, Message, ToolCall
from lightwork.agents.context import Context, Result
from lightwork.agents.engine_model import open_model
from lightwork.agents.profile_model import Profile, ProfileModel
from lightwork.agents.tool import Tool
from lightwork.errors import SpecError
from lightwork.runtime.effects import Sleep
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.queue_policies import QueuePolicy
from lightwork.runtime.queue_policies.first_come_first_served import FirstComeFirstServed
from lightwork.runtime.queue_policies.priority import Priority
from lightwork.runtime.queue_policies.round_robin import RoundRobin
from lightwork.serve.plan import Plan
from lightwork.serve.schedulers.context_switch import ContextSwitch

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def letters(request: ChatRequest, said: str) -> str:
    """As many letters as were asked for."""
    return (LETTERS * 9)[: int(request.messages[-1].content)]


class Ask:
    """A program of one turn."""

    async def run(self, context: Context, question: str) -> Result:
        reply = await context.ask(ChatRequest((Message("user", question),), max_tokens=999))
        return Result(reply.text, usage=context.usage)


class UseTools:
    """A program that calls tools side by side."""

    def __init__(self, *calls: ToolCall) -> None:
        self.calls = calls

    async def run(self, context: Context, question: str) -> Result:
        futures = [context.tools.call(call) for call in self.calls]
        observations = await context.kernel.gather(*futures)
        return Result("", observations=tuple(observations))


def typist(kernel: Kernel, **profile: float) -> ProfileModel:
    """A letter a second."""
    return ProfileModel(kernel, Profile(tokens_per_s=1.0, **profile), letters, count=len)  # type: ignore[arg-type]


def run_all(system: AIOS, *jobs: tuple[Any, str, Agent]) -> list[Result]:
    async def main() -> list[Result]:
        return await system.kernel.gather(*(system.run(*job) for job in jobs))

    results: list[Result] = system.kernel.run(main())
    assert all(call.status == "done" for call in system.calls)
    return results


THREE = [(Ask(), "6", Agent("ann")), (Ask(), "2", Agent("bob")), (Ask(), "3", Agent("cy", priority=1))]


def spent(call: Syscall) -> tuple[float, list[tuple[float, float]]]:
    turns = list(zip(call.starts_s, call.ends_s, strict=True))
    return round(call.waiting_s, 9), turns


@pytest.mark.parametrize(
    ("policy", "turns"),
    [
        (FirstComeFirstServed(), [(0, [(0, 6)]), (6, [(6, 8)]), (8, [(8, 11)])]),
        (RoundRobin(quantum=2), [(5, [(0, 2), (6, 8), (9, 11)]), (2, [(2, 4)]), (6, [(4, 6), (8, 9)])]),
        (Priority(), [(3, [(0, 1), (4, 9)]), (9, [(9, 11)]), (1, [(1, 4)])]),
    ],
    ids=repr,
)
def test_each_call_has_its_turns_and_the_record_has_them(policy: QueuePolicy, turns: Any) -> None:
    """One place at a model that goes on from text. With Priority the first has begun when the third comes."""
    kernel = Kernel()
    system = AIOS(kernel, {"": typist(kernel)}, places={"": 1}, policy=policy)
    results = run_all(system, *THREE)
    assert [result.answer for result in results] == [LETTERS[:6], LETTERS[:2], LETTERS[:3]]
    assert [spent(call) for call in system.calls] == turns
    assert [call.agent for call in system.calls] == ["ann", "bob", "cy"]
    assert all(call.created_s == 0 and call.turnaround_s == call.ends_s[-1] for call in system.calls)


def test_a_text_that_goes_on_is_read_again_and_that_is_counted() -> None:
    kernel = Kernel()
    system = AIOS(kernel, {"": typist(kernel)}, places={"": 1}, policy=RoundRobin(quantum=2))
    ann, bob = run_all(system, *THREE[:2])
    first, second = system.calls
    assert (first.recomputed, second.recomputed) == (1 + 2, 0)  # the question and two letters
    assert (ann.usage.completion, bob.usage.completion) == (6, 2)


def test_an_empty_queue_takes_no_time() -> None:
    kernel = Kernel()
    system = AIOS(kernel, {"": typist(kernel)}, [sleeper("nap")], places={"": 1})
    for _ in range(3):
        run_all(system, (Ask(), "2", Agent("ann")), (UseTools(ToolCall("1", "nap", {})), "", Agent("ann")))
    assert [call.waiting_s for call in system.calls] == [0.0] * 6
    assert kernel.now() == 6.0


def test_models_that_queue_by_themselves_tell_their_turns_too() -> None:
    """The serving engine, simulated: a turn is an unbroken row of its steps, as its own trace has them."""
    answers, plain = [], []
    for use in ((), (ContextSwitch(policy=RoundRobin(quantum=3)),)):
        kernel = Kernel()
        plan = Plan(model="shape:llama-3-8b", on="sim:a100", use=use)
        system = AIOS(kernel, {"": open_model(plan, kernel, letters)})
        results = run_all(system, *((Ask(), str(n), Agent(f"agent {n}")) for n in (26, 5, 9)))
        answers.append([result.answer for result in results])
        plain = plain or [len(call.starts_s) for call in system.calls]
    assert answers[0] == answers[1] == [LETTERS, LETTERS[:5], LETTERS[:9]]
    assert plain == [1, 1, 1]
    first, second, third = system.calls
    assert len(first.starts_s) > len(third.starts_s) > 1
    assert second.ended_s < third.ended_s < first.ended_s  # type: ignore[operator]
    for call in system.calls:
        assert call.ended_s == pytest.approx(call.ends_s[-1])
        assert 0 < call.waiting_s < call.turnaround_s  # type: ignore[operator]
    turns = sorted(turn for call in system.calls for turn in spent(call)[1])
    assert all(end <= start + 1e-12 for (_, end), (start, _) in pairwise(turns))


def test_who_hangs_up_frees_the_place() -> None:
    kernel = Kernel()
    system = AIOS(kernel, {"": typist(kernel)}, places={"": 1})

    class HangUp:
        async def run(self, context: Context, question: str) -> Result:
            stream = context.stream(ChatRequest((Message("user", "90"),)))
            async for piece in stream:
                return Result(piece + stream.cancel().text)
            return Result("")

    hung, after = run_all(system, (HangUp(), "", Agent("ann")), (Ask(), "4", Agent("bob")))
    assert (hung.answer, after.answer) == ("aa", "abcd")
    assert kernel.now() == 5.0
    assert system.calls[0].error == "cancelled"


def test_what_a_program_still_asks_when_it_ends_is_given_up() -> None:
    kernel = Kernel()
    system = AIOS(kernel, {"": typist(kernel)}, places={"": 1})

    class AskAndLeave:
        async def run(self, context: Context, question: str) -> Result:
            context.stream(ChatRequest((Message("user", "90"),)))
            await context.kernel.sleep(2.5)
            return Result("gone")

    run_all(system, (AskAndLeave(), "", Agent("ann")), (Ask(), "4", Agent("bob")))
    assert kernel.now() == 6.5
    assert [call.error for call in system.calls] == ["cancelled", ""]


def test_a_model_that_fails_fails_who_asked_and_the_next_is_served() -> None:
    kernel = Kernel()
    system = AIOS(kernel, {"": typist(kernel)}, places={"": 1})

    async def main() -> str:
        wrong = system.run(Ask(), "many", Agent("ann"))
        right = system.run(Ask(), "2", Agent("bob"))
        with pytest.raises(ValueError, match="many"):
            await wrong
        return (await right).answer

    assert kernel.run(main()) == "ab"
    assert "many" in system.calls[0].error


# -- tools

EMPTY = {"type": "object", "properties": {}}


def sleeper(name: str, log: list[tuple[str, float]] | None = None, **settings: Any) -> Tool:
    """Takes a second. log: of begins and ends."""

    async def nap() -> str:
        if log is not None:
            log.append((name, 1))
        await Sleep(1.0)
        if log is not None:
            log.append((name, -1))
        return name

    return Tool(name=name, description="", parameters=EMPTY, fn=nap, **settings)


def most_at_once(log: list[tuple[str, float]], *names: str) -> float:
    at_once = most = 0.0
    for name, change in log:
        if name in names:
            at_once += change
            most = max(most, at_once)
    return most


def test_a_tool_never_runs_more_often_than_its_limit_and_others_run_beside_it() -> None:
    log: list[tuple[str, float]] = []
    kernel = Kernel()
    system = AIOS(kernel, {}, [sleeper("print", log, limit=1), sleeper("scan", log, limit=1)])
    calls = [ToolCall(str(i), ("print", "scan")[i % 2], {}) for i in range(8)]
    run_all(system, *((UseTools(call), "", Agent(f"agent {call.id}")) for call in calls))
    assert most_at_once(log, "print") == most_at_once(log, "scan") == 1
    assert most_at_once(log, "print", "scan") == 2
    assert kernel.now() == 4.0  # half of what it would be one by one


def test_tools_that_exclude_each_other_take_turns() -> None:
    log: list[tuple[str, float]] = []
    kernel = Kernel()
    tools = [sleeper(name, log) for name in ("read", "write", "look")]
    system = AIOS(kernel, {}, tools, exclusive=[("read", "write")])
    calls = [ToolCall("", name, {}) for name in ("read", "write", "look", "read", "write", "look")]
    run_all(system, (UseTools(*calls), "", Agent("ann")))
    assert most_at_once(log, "read", "write") == 1
    assert most_at_once(log, "look") == 2
    assert kernel.now() == 4.0


def test_calls_of_the_urgent_go_first() -> None:
    kernel = Kernel()
    system = AIOS(kernel, {}, [sleeper("print", limit=1)], policy=Priority())
    call = UseTools(ToolCall("", "print", {}))
    run_all(system, *((call, "", Agent(f"{i}", priority=i)) for i in range(4)))
    assert [call.starts_s for call in system.calls] == [[0.0], [3.0], [2.0], [1.0]]


def test_whatever_is_wrong_with_a_call_is_its_response() -> None:
    def fail() -> None:
        raise ZeroDivisionError("never")

    add = Tool(
        name="add",
        description="",
        parameters={
            "type": "object",
            "properties": {"a": {"type": "integer"}, "how": {"enum": ["up", "down"]}},
            "required": ["a"],
        },
        fn=lambda a, how="up": a + 1,
    )
    bad = Tool(name="fail", description="", parameters=EMPTY, fn=fail)
    late = sleeper("late", deadline_s=0.5)
    kernel = Kernel()
    system = AIOS(kernel, {}, [add, bad, late])
    asked = [("add", {"a": 1}), ("add", {}), ("add", {"a": "1"}), ("add", {"a": 1, "b": 2})]
    asked += [
        ("add", {"a": 1, "how": "left"}),
        ("add", {"a": True}),
        ("fail", {}),
        ("late", {}),
        ("none", {}),
    ]
    (result,) = run_all(
        system, (UseTools(*(ToolCall("", name, given) for name, given in asked)), "", Agent("ann"))
    )
    first, *others = result.observations
    assert (first.value, first.error) == (2, "")
    expected = ["'a' not given", "is '1', not integer", "called 'b'", "not one of 'up', 'down'", "True, not"]
    expected += ["ZeroDivisionError: never", "did not answer in 0.5 s", "no tool 'none'"]
    for observation, words in zip(others, expected, strict=True):
        assert words in observation.error
    assert [bool(call.error) for call in system.calls] == [False] + [True] * 7  # the last never came so far


def test_exclusion_of_what_is_not_there_is_refused() -> None:
    with pytest.raises(SpecError, match="'draw' is to exclude others"):
        AIOS(Kernel(), {}, [sleeper("print")], exclusive=[("print", "draw")])
