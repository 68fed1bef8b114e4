"""Dependencies found again from arguments, and layered turns that do what serial ones did."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import pytest

from lightwork.agents.chat_model import ToolCall
from lightwork.agents.dependencies import (
    Judge,
    Needs,
    Provenance,
    leaves,
    normalised,
    read_edges,
    write_edges,
)
from lightwork.agents.graph import critical_path_s
from lightwork.agents.layering import Rejected, layered
from lightwork.agents.profile_model import Profile, ProfileModel
from lightwork.agents.tool import Observation
from lightwork.agents.trajectories import Trajectory, Turn
from lightwork.runtime.kernel import Kernel

TRACES = 2000
REPEATED = 0.065
"""Of values, so that one in ten is not unique."""


@dataclass(frozen=True, slots=True)
class Known:
    """A synthetic trace, and who needs whom in truth."""

    trajectory: Trajectory
    needs: Needs


def trace(rng: Random, repeated: float, named: bool) -> Known:
    """Each step gives a number and a code, and takes either or both of up to three steps before it, and
    constants of the question; every step is needed. repeated: the share of values that are equal to one of an
    earlier step. named: arguments are called as what they come from is."""
    num = rng.randint(2, 9)
    gave: list[tuple[int, str]] = []
    truth: dict[int, set[int]] = {}
    steps: list[Observation] = []
    constants = [rng.randrange(10**8, 10**9) for _ in range(3)]
    unused: list[int] = []
    for i in range(1, num + 1):
        some = rng.sample(range(1, i), min(i - 1, rng.choice((0, 1, 1, 2, 3))))
        taken = unused if i == num else some
        truth[i] = set(taken)
        unused = [u for u in unused if u not in taken] + [i]
        arguments: dict[str, Any] = {"what": rng.choice(constants), "step": f"s{i}x"}
        for k, u in enumerate(taken):
            for field in rng.choice(((0,), (1,), (0, 1))):
                arguments[f"{'nc'[field]}{u}" if named else f"{k}{field}"] = gave[u - 1][field]
        number, code = rng.randrange(10**6, 10**8), f"k{rng.randrange(10**8)}"
        if gave and rng.random() < repeated:
            number = rng.choice(gave)[0]
        if gave and rng.random() < repeated:
            code = rng.choice(gave)[1]
        gave.append((number, code))
        shown: Any = number if rng.random() < 0.5 else f"It is {number:,}."
        steps.append(Observation(ToolCall(f"c{i}", f"tool{i}", arguments), {f"n{i}": shown, f"c{i}": code}))
    truth[num + 1] = {num}
    question = (
        f"What of {', '.join(map(str, constants))}, by {' '.join(f's{i}x' for i in range(1, num + 1))}?"
    )
    turns = tuple(Turn(f"I call tool{i}.", (step,)) for i, step in enumerate(steps, 1))
    found = Trajectory(question, turns, f"The result is {gave[-1][0]}, or {gave[-1][1]}.")
    return Known(found, {i: frozenset(taken or {0}) for i, taken in truth.items()})


@cache
def traces(repeated: float, named: bool = False) -> list[Known]:
    rng = Random(f"traces {repeated}")
    return [trace(rng, repeated, named) for _ in range(TRACES)]


@cache
def converted(repeated: float) -> list[Trajectory | Rejected]:
    return [convert(one.trajectory) for one in traces(repeated)]


def convert(trajectory: Trajectory, oracle: Any = None) -> Trajectory | Rejected:
    return Kernel().run(layered(trajectory, oracle or Provenance()))  # type: ignore[no-any-return]


def edges(needs: Needs) -> set[tuple[int, int]]:
    return {(u, v) for v, found in needs.items() for u in found if u}


def precision_and_recall(known: list[Known]) -> tuple[float, float]:
    right = found = true = 0
    for one in known:
        told = edges(Kernel().run(Provenance().needs(one.trajectory)))
        wanted = edges(one.needs)
        right, found, true = right + len(told & wanted), found + len(told), true + len(wanted)
    return right / found, right / true


def test_all_edges_are_found_where_values_are_unique():
    assert precision_and_recall(traces(0.0)) == (1.0, 1.0)


def test_nearly_all_are_found_where_one_value_in_ten_is_not_unique():
    values = [
        [leaf.words.split()[-1] for step in one.trajectory.steps for leaf in leaves(step.value)]
        for one in traces(REPEATED)
    ]
    shared = sum(some.count(value) > 1 for some in values for value in some)
    assert shared / sum(map(len, values)) >= 0.1
    assert min(precision_and_recall(traces(REPEATED))) >= 0.98


def test_names_of_arguments_tell_equal_values_apart():
    assert min(precision_and_recall(traces(REPEATED, named=True))) >= 0.998


def replayed(known: Known, found: Trajectory) -> None:
    """Each turn's calls can be made from what earlier turns gave, and give what they gave."""
    before = {(s.call.name, str(dict(s.call.arguments))): s.value for s in known.trajectory.steps}
    after = [(s.call.name, str(dict(s.call.arguments))) for s in found.steps]
    assert sorted(after) == sorted(before)
    have = normalised(found.question)
    for turn in found.turns:
        for step in turn.seen:
            assert step.value == before[step.call.name, str(dict(step.call.arguments))]
            assert all(leaf.words in have for leaf in leaves(dict(step.call.arguments)))
        have += "".join(leaf.words for step in turn.seen for leaf in leaves(step.value))


@pytest.mark.parametrize("repeated", [0.0, REPEATED])
def test_layered_turns_give_the_same_in_as_few_steps_as_the_longest_path(repeated: float):
    kept = 0
    for known, found in zip(traces(repeated), converted(repeated), strict=True):
        if isinstance(found, Rejected):
            assert found.why == "two sinks"
            assert "nothing needs step" in found.about
            continue
        kept += 1
        replayed(known, found)
        needs = known.needs if repeated == 0.0 else Kernel().run(Provenance().needs(found))
        deps = {i: [u for u in needs[i] if u] for i in range(1, len(needs))}
        assert len(found.turns) <= critical_path_s(deps, dict.fromkeys(deps, 1.0))
    assert kept == TRACES if repeated == 0.0 else kept > 0.9 * TRACES


@pytest.mark.parametrize("repeated", [0.0, REPEATED])
def test_what_is_layered_stays_as_it_is(repeated: float):
    for found in converted(repeated):
        if isinstance(found, Trajectory):
            assert convert(found) == found


def step(i: int, error: str = "", **arguments: Any) -> Observation:
    call = ToolCall(f"c{i}", f"tool{i}", arguments)
    return Observation(call, error=error) if error else Observation(call, 1000 + i)


def in_turns(*turns: tuple[Observation, ...], answer: str = "it is 1003") -> Trajectory:
    return Trajectory(
        "what of 7?", tuple(Turn(f"Turn {i}.", seen) for i, seen in enumerate(turns, 1)), answer
    )


THREE = in_turns((step(1, a=7),), (step(2, b=7),), (step(3, a=1001, b=1002),))
FINE = "0->1,0->2,1->3,2->3,3->4"


@dataclass(frozen=True, slots=True)
class Says:
    """An oracle that always says the same."""

    edges: str

    async def needs(self, trajectory: Trajectory) -> Needs:
        return read_edges(self.edges)


@pytest.mark.parametrize(
    ("edges", "why", "about"),
    [
        ("0->1,0->2,1->3,3->4", "two sinks", "step 2"),
        ("0->1,0->2,1->3,2->3,2->4", "two sinks", "step 3"),
        ("0->1,1->3,3->4", "missing step", "step 2"),
        ("0->1,0->2,1->3,2->3", "missing step", "step 4"),
        ("0->1,1->3,2->3,3->4", "several sources", "step 2"),
        ("0->1,0->2,2->1,1->2,1->3,2->3,3->4", "cycle", "1, 2, 3, 4"),
        ("0->1,0->2,1->3,2->3,3->4,3->5", "unknown step", "step 5"),
        ("0->1,0->2,1->3,2->3,3->4,3->0", "unknown step", "0"),
        ("0->2,2->1,1->3,3->4", "incoherent", "step 1 need what was only found later"),
        ("0->1,0->2,then 3", "incoherent", "'then 3' is no edge"),
    ],
)
def test_a_graph_that_is_no_way_from_question_to_answer_is_refused(edges: str, why: str, about: str):
    found = convert(THREE, Says(edges))
    assert isinstance(found, Rejected)
    assert (found.why, about in found.about) == (why, True), found.about


@pytest.mark.parametrize(
    ("trajectory", "why", "about"),
    [
        (in_turns(), "no calls", "without a call"),
        (in_turns((), (step(1),)), "no calls", "without a call"),
        (in_turns((step(1),), answer=""), "incoherent", "there is no answer"),
        (in_turns((step(1, "no network"),), (step(2),)), "incoherent", "step 1 failed"),
        (in_turns((step(1, a=7),), (step(1, a=7),)), "incoherent", "step 2 were made before"),
        (in_turns((step(1),), (step(3),)), "two sinks", "step 1"),
    ],
)
def test_a_trajectory_that_makes_no_sense_is_refused(trajectory: Trajectory, why: str, about: str):
    found = convert(trajectory)
    assert isinstance(found, Rejected)
    assert (found.why, about in found.about) == (why, True), found.about


def test_thoughts_of_merged_calls_become_one_and_the_next_tells_what_is_there():
    found = convert(THREE, Says(FINE))
    assert isinstance(found, Trajectory)
    assert found.groups == ((1, 2), (3,))
    both, then = (turn.thought for turn in found.turns)
    assert both == "I can do 2 things at once, as none needs another. Turn 1. Turn 2."
    assert then == "I have what tool1(7) and tool2(7) gave. Turn 3."
    serial = in_turns((step(1, a=7),), (step(3, a=1001),))
    assert convert(serial) == serial


def test_calls_that_were_made_late_come_as_soon_as_they_can():
    late = in_turns((step(1, a=7),), (step(4, a=1001),), (step(2, b=7),), (step(3, a=1004, b=1002),))
    found = convert(late)
    assert isinstance(found, Trajectory)
    assert [[one.call.name for one in turn.seen] for turn in found.turns] == [
        ["tool1", "tool2"],
        ["tool4"],
        ["tool3"],
    ]


def test_a_model_may_say_what_needs_what():
    told: list[str] = []

    def says(request: Any, said: str) -> str:
        told.append(request.messages[-1].content)
        return FINE if len(told) == 1 else "0->1,0->2,1->3,2->3,3->4"

    kernel = Kernel()
    judge = Judge(ProfileModel(kernel, Profile(), says))
    found = kernel.run(layered(THREE, judge))
    assert found == convert(THREE)
    assert '\n3. tool3({"a": 1001, "b": 1002}) gave 1003\n4. the answer: it is 1003' in told[0]
    assert write_edges(read_edges(FINE)) == FINE


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("1,234,000.50", " 1234000.5 "),
        (37.0, " 37 "),
        ("Oslo-Norway, e17!", " oslo norway e17 "),
        ("2024-05-06", " 2024 -05 -06 "),
        ("", " "),
    ],
)
def test_values_are_told_apart_by_what_they_say(value: Any, words: str):
    assert normalised(value) == words


def test_values_inside_data_and_inside_texts_that_are_data():
    data = {"a": [1, {"b": "x"}], "c": None, "d": True, "e": '{"f": "Rome"}'}
    assert [(leaf.key, leaf.words) for leaf in leaves(data)] == [("a", " 1 "), ("b", " x "), ("f", " rome ")]


def test_text_that_only_quotes_the_question_needs_nothing():
    """A name comes from the question, or from a result that is nothing else; other words tell nothing."""
    asked = Trajectory(
        "Who leads the town of Bergen?",
        (
            Turn(
                "",
                (
                    Observation(
                        ToolCall("1", "town", {"name": "Bergen"}), {"mayor": "Ann Lie", "in": "Bergen"}
                    ),
                ),
            ),
            Turn("", (Observation(ToolCall("2", "town", {"name": "bergen", "of": "Norway"}), "nobody"),)),
            Turn(
                "",
                (Observation(ToolCall("3", "mail", {"text": "Hello, Ann Lie of Bergen"}), "sent: nobody"),),
            ),
        ),
        "Ann Lie",
    )
    needs = Kernel().run(Provenance().needs(asked))
    assert needs == {1: {0}, 2: {0}, 3: {1}, 4: {1}}
