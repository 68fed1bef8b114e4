"""Plans are read line by line as they come, and what breaks their rules comes back with the reason."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.agents.graph import Slot, Task, Template
from lightwork.agents.plan_text import Bad, Join, PlanParser, Said, read_call
from lightwork.agents.worlds.plan_world import PlanWorld

PLAN = """Thought: both heights first
1. search("height of Oslo")
2. search('height of "Rome"', unit="m")

3. compare($1, ${2.value}, "of $1 and ${2}.", [1, -2.5, {"k": $2}])
4. join()
5. search("not looked at")
"""


def read(*pieces: str, **settings: int) -> list[Said]:
    parser = PlanParser(**settings)
    return [said for piece in pieces for said in parser.push(piece)] + [*parser.end()]


def shown(all_said: list[Said]) -> list[str]:
    return [repr(s) if isinstance(s, Bad | Join) else f"{s} {s.thought} {s.named}" for s in all_said]


def test_a_plan_is_read() -> None:
    first, second, third, end = read(PLAN)
    assert isinstance(first, Task)
    assert isinstance(second, Task)
    assert isinstance(third, Task)
    assert isinstance(end, Join)
    assert (first.args, first.thought) == (("height of Oslo",), "both heights first")
    assert (second.args, second.named, second.thought) == (('height of "Rome"',), {"unit": "m"}, "")
    text = Template(("of ", Slot(1), " and ", Slot(2), "."))
    assert third.args == (Slot(1), Slot(2, ("value",)), text, [1, -2.5, {"k": Slot(2)}])
    assert third.deps == (1, 2)


@given(cuts=st.lists(st.integers(0, len(PLAN)), max_size=12).map(sorted))
def test_it_is_the_same_in_any_pieces(cuts: list[int]) -> None:
    ends = [0, *cuts, len(PLAN)]
    pieces = [PLAN[a:b] for a, b in pairwise(ends)]
    assert shown(read(*pieces)) == shown(read(PLAN))


def test_a_call_is_there_with_its_newline() -> None:
    parser = PlanParser()
    assert [*parser.push("1. search('a'")] == []
    assert [*parser.push(")")] == []
    assert [str(said) for said in parser.push("\n2. sea")] == ["1. search('a')"]


def test_the_plans_of_the_built_in_world_are_read() -> None:
    rng, world = Random(0), PlanWorld()
    for _ in range(50):
        gold = world.sample(rng, 3).gold
        *tasks, end = read(gold)
        assert isinstance(end, Join)
        for task, line in zip(tasks, gold.split("\n"), strict=False):
            assert isinstance(task, Task)
            args = " ".join(str(arg) for arg in task.args)
            assert f"{task.id}. {task.thought} {task.tool} {args}" == line


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ("1. f(1)\n1. f(2)\njoin()", "there is a call 1 already"),
        ("2. f(1)\n1. f(2)\njoin()", "ids must rise"),
        ("1. f($2)\n2. f(1)\njoin()", r"needs \$2, which is not before it"),
        ("1. f($1)\njoin()", "needs itself"),
        ("first I look\njoin()", "neither"),
        ("1. f(1)", r"ends without join\(\)"),
        ("", r"ends without join\(\)"),
    ],
)
def test_what_breaks_the_rules_comes_back_with_the_reason(plan: str, why: str) -> None:
    bad = [said for said in read(plan) if isinstance(said, Bad)]
    assert len(bad) == 1
    with pytest.raises(ValueError, match=why):
        raise ValueError(bad[0].why)


def test_the_lines_after_a_bad_one_are_read() -> None:
    assert [type(said) for said in read("1. f($9)\n2. f(1)\njoin()")] == [Bad, Task, Join]


def test_arguments_that_are_no_literals_are_one_text() -> None:
    for text in (
        "height of Oslo",
        "__import__('os')",
        "a, b for c",
        "f(1)",
        "*x",
        "**x",
        "'unclosed",
        "lambda: 0",
    ):
        task = read_call(f"1. search({text})")
        assert task is not None
        assert task.args == (text,)
    assert (task := read_call("1. search(height of $1)")) is not None
    assert task.args == (Template(("height of ", Slot(1))),)


def test_ten_thousand_lines_are_cut_at_the_budget() -> None:
    text = "\n".join(f"{i}. f({i})" for i in range(1, 10_001))
    said = read(text, most=64)
    assert [type(s) for s in said] == [Task] * 64 + [Bad]
    assert "more than 64 calls" in shown(said)[64]


def test_a_line_without_end_is_not_kept() -> None:
    parser = PlanParser()
    said = [s for _ in range(300) for s in parser.push("x" * 1000)]
    assert {type(s) for s in said} == {Bad}
    assert all(len(s.line) <= 80 for s in said if isinstance(s, Bad))


@given(text=st.text(max_size=200))
def test_any_text_is_read_without_an_error(text: str) -> None:
    read(text)
    read(f"1. f({text})\n2. g({text}, $1)\njoin()")


def test_arguments_nested_too_deep_for_a_reader_of_literals_are_one_text() -> None:
    deep = "[" * 5000
    task = read_call(f"1. f({deep})")
    assert task is not None
    assert task.args == (deep,)
