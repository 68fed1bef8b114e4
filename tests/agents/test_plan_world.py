"""PlanWorld: its plans are right, its split is honest, its judge is exact."""

from __future__ import annotations

import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.agents.worlds.plan_world import (
    ENTITIES,
    Call,
    Facts,
    PlanWorld,
    draw,
    english,
    execute,
    is_held_out,
    plan,
)
from lightwork.agents.worlds.score import wilson
from lightwork.errors import RangeError, UsageError

NAMES = {"height": "kamu", "parent": "lozi", "difference": "bipu"}
QUESTION = Call("difference", (Call("height", ("e3",)), Call("height", (Call("parent", ("e3",)),))))
GOLD = "1. height kamu e3\n2. parent lozi e3\n3. height kamu $2\n4. difference bipu $1 $3\n5. join()"
FACTS = Facts(7)

seeds = st.integers(0, 2**32)
levels = st.integers(1, 4)


def test_the_plan_of_the_module_docstring() -> None:
    assert english(QUESTION) == "difference of ( height of e3 ) and ( height of parent of e3 )"
    assert plan(QUESTION, NAMES) == GOLD


def evaluate(call: Call | str) -> int | str:
    return call if isinstance(call, str) else FACTS.call(call.word, [evaluate(a) for a in call.args])


@given(seeds, levels)
def test_a_gold_plan_gives_the_answer_of_its_question(seed: int, level: int) -> None:
    rng = Random(seed)
    names = PlanWorld().catalogue(rng)
    question = draw(rng, names, level)
    assert question.depth == level
    assert execute(plan(question, names), names, FACTS) == evaluate(question)


@given(seeds, levels)
def test_plans_share_what_is_equal_and_hoist_what_is_independent(seed: int, level: int) -> None:
    lines = PlanWorld().sample(Random(seed), level).gold.split("\n")[:-1]
    calls = [line.split(" ", 1)[1] for line in lines]
    assert len(set(calls)) == len(calls)
    waits = ["$" in call for call in calls]
    assert waits == sorted(waits)


@given(seeds, levels)
def test_held_out_tools_never_occur_in_training(seed: int, level: int) -> None:
    train = PlanWorld(split="train").sample(Random(seed), level)
    heldout = PlanWorld(split="heldout").sample(Random(seed), level)
    assert not any(is_held_out(name) for name in train.tools)
    assert all(is_held_out(name) for name in heldout.tools)


@given(seeds, levels)
def test_one_seed_one_episode_and_its_gold_is_judged_exact(seed: int, level: int) -> None:
    a, b = (PlanWorld().sample(Random(seed), level) for _ in range(2))
    assert (a.prompt, a.gold, a.tools) == (b.prompt, b.gold, b.tools)
    verdict = a.check(f" {a.gold}\n")
    assert verdict.exact
    assert verdict.answered


@given(seeds, st.integers(2, 4))
def test_questions_can_be_chosen_to_share_calls(seed: int, level: int) -> None:
    rng, world = Random(seed), PlanWorld(shared=1.0)
    asked = [world.sample(rng, one) for one in (1, level)]
    num_asked = [len(re.findall(r"[a-z]+ of", one.question)) for one in asked]
    num_planned = [one.gold.count("\n") for one in asked]
    assert num_asked[0] == num_planned[0] == 1
    assert num_asked[1] > num_planned[1]


def test_the_sides_of_operations_can_be_made_to_share_more() -> None:
    def repeated(related: float) -> int:
        """How many have equal calls, which are planned once."""
        rng, world = Random(0), PlanWorld(related=related)
        asked = [world.sample(rng, level) for level in (2, 3, 4) for _ in range(100)]
        return sum(len(re.findall("[a-z]+ of", one.question)) > one.gold.count("\n") for one in asked)

    none, some, most = map(repeated, (0.0, 0.3, 0.9))
    assert none < some / 2
    assert most > 2 * some


def test_only_the_first_prompt_of_a_dialogue_lists_the_tools() -> None:
    first, second = PlanWorld().dialogue(Random(0), [1, 3])
    assert first.prompt.startswith("tools:\n- ")
    assert second.prompt.startswith("question: ")
    assert first.tools == second.tools


def test_another_order_of_the_same_calls_is_answered_but_not_exact() -> None:
    world = PlanWorld()
    for seed in range(100):
        episode = world.sample(Random(seed), 2)
        lines = episode.gold.split("\n")
        if len(lines) == 4 and lines[2].endswith("$1 $2"):
            lines[0], lines[1] = "1" + lines[1][1:], "2" + lines[0][1:]
            lines[2] = lines[2].removesuffix("$1 $2") + "$2 $1"
            verdict = episode.check("\n".join(lines))
            assert not verdict.exact
            assert verdict.answered
            return
    raise AssertionError("no seed gave two independent calls")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1. join()",
        "1. height kamu e3",
        "1. height nowhere e3\n2. join()",
        "1. height kamu $2\n2. parent lozi e3\n3. join()",
        "1. height kamu $1\n2. join()",
        "2. height kamu e3\n1. join()",
        "1. height kamu e3\n1. join()",
        "1. height kamu e99\n2. join()",
        "1. height kamu e3 e4\n2. join()",
        "1. difference bipu e3\n2. join()",
        "1. difference bipu e3 e4\n2. join()",
        "1. height kamu e3\n2. parent lozi $1\n3. join()",
        "1. height kamu e3\n\n2. join()",
        "1. join()\n2. height kamu e3",
        "99999999999999999999. height kamu e3\n2. join()",
        "x" * 100_000,
    ],
)
def test_a_plan_that_breaks_the_rules_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        execute(text, NAMES, FACTS)


@given(st.text())
def test_any_text_is_judged_without_an_exception(text: str) -> None:
    assert not PlanWorld().sample(Random(1), 1).check(text).exact


@pytest.mark.parametrize("level", [0, 7])
def test_unknown_levels_are_refused(level: int) -> None:
    with pytest.raises(RangeError, match="level"):
        PlanWorld().sample(Random(0), level)


def test_facts_are_a_function_of_their_seed() -> None:
    assert FACTS.call("height", ["e3"]) == Facts(7).call("height", ["e3"])
    assert FACTS.call("parent", ["e3"]) in ENTITIES
    assert FACTS.call("gap", [3, 10]) == 7


def test_wilson_interval_of_the_textbook() -> None:
    low, high = wilson(9, 10)
    assert (round(low, 3), round(high, 3)) == (0.596, 0.982)
    assert wilson(10, 10)[1] == 1.0
