"""Windows that move through a model: what is copied when, counted beside the definition of each."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.errors import RangeError, SpecError
from lightwork.memory.residencies import Residency
from lightwork.memory.residencies.belady import Belady
from lightwork.memory.residencies.sliding import Sliding
from lightwork.memory.residencies.window import Window
from lightwork.memory.residents import Residents
from lightwork.techniques import parse

Shapes = tuple[int, int, int, int]


def names(num: int) -> list[str]:
    return [f"unit {i}" for i in range(num)]


class Counted:
    """A model whose copies arrive at once. copied: by use, what was asked for."""

    def __init__(self, order: list[str], policy: Residency[Any], slots: int) -> None:
        self.order = order
        self.residents = Residents(dict.fromkeys(order, 10), 10 * slots, policy, order)
        self.copied: list[list[str]] = []

    def use(self, name: str) -> None:
        copies = self.residents.turn(name)
        for one, _ in copies:
            self.residents.end(one, arrived=True)
        self.copied.append([one for one, _ in copies])
        assert name in self.residents
        assert self.residents.nbytes <= self.residents.cap_bytes

    def passes(self, num: int = 1) -> int:
        """How many copies they make."""
        before = self.residents.copies
        for _ in range(num):
            for name in self.order:
                self.use(name)
        return self.residents.copies - before


@st.composite
def shapes(draw: st.DrawFn) -> Shapes:
    """(units, k, k_move, stay)"""
    num = draw(st.integers(1, 12))
    k = draw(st.integers(1, 14))
    stay = draw(st.integers(0, k - 1))
    return num, k, draw(st.integers(1, k - stay)), stay


@given(num=st.integers(1, 12), window=st.integers(2, 14))
def test_a_sliding_window_is_what_runs_and_what_follows(num: int, window: int) -> None:
    model = Counted(names(num), Sliding(window=window), min(window, num))
    for _ in range(2):
        for i, name in enumerate(model.order):
            model.use(name)
            there = {model.order[(i + d) % num] for d in range(window)}
            assert {one for one in model.order if one in model.residents} == there
    assert model.passes() == (num if window < num else 0)


@given(shape=shapes())
def test_a_window_copies_each_unit_that_moves_and_none_if_all_fit(shape: Shapes) -> None:
    """As many at a time as are exchanged, or as have no room."""
    num, k, k_move, stay = shape
    stay = min(stay, num - 1)
    model = Counted(names(num), Window(k=k, k_move=k_move, stay=stay), min(k, num))
    first = model.passes(3)
    assert first >= num
    if k >= num:
        assert first == num
        assert model.passes(5) == 0
    else:
        assert model.passes(k_move) == (num - stay) * min(k_move, num - k)


@given(shape=shapes())
def test_units_are_exchanged_together(shape: Shapes) -> None:
    """When k_move have run, what is not there of the next k; nothing in between."""
    num, k, k_move, _ = shape
    model = Counted(names(num), Window(k=k, k_move=k_move), min(k, num))
    for i, name in enumerate(model.order * 3):
        there = [one for one in model.order if one in model.residents]
        model.use(name)
        following = (model.order * 5)[i : i + min(k, num)]
        exchanged = [one for one in dict.fromkeys(following) if one not in there]
        assert model.copied[i] == (exchanged if i % k_move == 0 else [])
        assert len(model.copied[i]) <= k_move or i == 0


@given(num=st.integers(2, 10), k=st.integers(1, 10))
def test_forward_then_backward_copies_only_what_had_no_room(num: int, k: int) -> None:
    """As in training: the end of each way is the beginning of the next."""
    way = names(num)
    residents = Residents(dict.fromkeys(way, 1), min(k, num), Window(k=k), [*way, *reversed(way)])
    counts = []
    for i in range(6):
        before = residents.copies
        for name in way if i % 2 == 0 else reversed(way):
            for one, _ in residents.turn(name):
                residents.end(one, arrived=True)
        counts.append(residents.copies - before)
    assert counts == [num] + [max(0, num - k)] * 5


@pytest.mark.parametrize(("num", "k"), [(8, 3), (12, 4), (5, 2), (6, 5)])
def test_passes_one_after_the_other_cannot_do_with_as_few_copies(num: int, k: int) -> None:
    """num - k a pass is less than the bound that no policy beats; with all but one staying, num - k + 1."""
    trace = names(num) * 40
    bound = Residents(dict.fromkeys(trace, 1), k, Belady(trace=tuple(trace)))
    for name in trace:
        bound.use(name)
        if name not in bound:
            bound.begin(name)
            bound.end(name, arrived=True)
    model = Counted(names(num), Window(k=k, stay=k - 1), k)
    model.passes(2)
    assert num - k < bound.copies / 40 <= model.passes() == num - k + 1


@given(shape=shapes(), left=st.integers(0, 11))
def test_a_pass_that_is_given_up_leaves_a_window_that_goes_on(shape: Shapes, left: int) -> None:
    num, k, k_move, stay = shape
    stay = min(stay, num - 1)
    window = Counted(names(num), Window(k=k, k_move=k_move, stay=stay), min(k, num))
    sliding = Counted(names(num), Sliding(window=max(2, k)), min(max(2, k), num))
    for model in (window, sliding):
        for name in model.order[: left % num]:
            model.use(name)
        assert model.passes() <= 2 * num
        model.passes(2)
    assert window.passes(k_move) == ((num - stay) * min(k_move, num - k) if k < num else 0)
    assert sliding.passes() == (num if max(2, k) < num else 0)


@pytest.mark.parametrize("text", ["Window(k=0)", "Window(k=2, k_move=3)", "Window(k=2, stay=2)"])
def test_a_window_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="exchanges") as error:
        parse(text)
    assert "1 <= k_move <= k - stay" in error.value.expected


def test_a_window_of_one_block_cannot_slide() -> None:
    with pytest.raises(RangeError, match="a window of 1") as error:
        Sliding(window=1)
    assert "at least 2" in error.value.expected


def test_without_an_order_nothing_slides() -> None:
    for policy in (Sliding(), Window()):
        with pytest.raises(RangeError, match="does not know what is used"):
            Residents({"a": 1, "b": 1}, 2, policy)
    with pytest.raises(RangeError, match="'c' is used"):
        Residents({"a": 1, "b": 1}, 2, Sliding(), ["a", "b"]).use("c")
