"""Who stays in a memory too small for all: counts beside plain models of the policies, and the hard limit."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from misses import lru_misses

from lightwork.errors import CapacityError, InvariantError, RangeError
from lightwork.memory.residencies import Residency
from lightwork.memory.residencies.belady import Belady
from lightwork.memory.residencies.lru import LRU
from lightwork.memory.residents import Residents

NAMES = "abcdefgh"
TRACES = st.lists(st.sampled_from(NAMES), min_size=1, max_size=80)


def copies(trace: list[str], slots: int, policy: Residency[Any]) -> int:
    """Of a trace whose items are copied when they are used."""
    residents = Residents(dict.fromkeys(NAMES, 10), 10 * slots + 9, policy)
    for name in trace:
        residents.use(name)
        if name not in residents:
            assert residents.begin(name) is not None
            assert name not in residents
            residents.end(name, arrived=True)
        assert residents.nbytes <= residents.cap_bytes
    assert residents.hits + residents.copies == len(trace)
    return residents.copies


def fewest_misses(trace: list[str], slots: int) -> int:
    """Over all choices of who goes, by trying them."""
    states: dict[frozenset[str], int] = {frozenset(): 0}
    for name in trace:
        after: dict[frozenset[str], int] = {}
        for held, misses in states.items():
            if name in held:
                choices = [(held, misses)]
            elif len(held) < slots:
                choices = [(held | {name}, misses + 1)]
            else:
                choices = [(held - {gone} | {name}, misses + 1) for gone in held]
            for found, count in choices:
                after[found] = min(count, after.get(found, count))
        states = after
    return min(states.values())


@given(trace=TRACES, slots=st.integers(1, 8))
def test_copies_are_the_misses_of_lru_and_no_fewer_than_the_bound(trace: list[str], slots: int) -> None:
    assert copies(trace, slots, LRU()) == lru_misses(trace, slots)
    assert copies(trace, slots, Belady(trace=tuple(trace))) <= lru_misses(trace, slots)


@given(trace=st.lists(st.sampled_from("abcde"), min_size=1, max_size=14), slots=st.integers(1, 4))
def test_belady_is_the_bound(trace: list[str], slots: int) -> None:
    assert copies(trace, slots, Belady(trace=tuple(trace))) == fewest_misses(trace, slots)


@given(trace=TRACES, slots=st.integers(2, 8))
def test_what_is_fetched_ahead_costs_no_copy_more(trace: list[str], slots: int) -> None:
    """With room for two: the item in use is not the one that goes, and is LRU's last choice as well."""
    residents = Residents(dict.fromkeys(NAMES, 1), slots, LRU())
    for name, then in zip(trace, [*trace[1:], ""], strict=True):
        if name not in residents.held:
            residents.use(name)
        if name not in residents:
            residents.begin(name)
            residents.end(name, arrived=True)
        if then and then not in residents:
            assert residents.begin(then) is not None
            residents.end(then, arrived=True)
            assert name in residents
    assert residents.copies == lru_misses(trace, slots)


def test_the_limit_is_asserted_and_an_item_larger_than_it_refused_by_name() -> None:
    with pytest.raises(CapacityError, match="'big' takes 11 bytes") as error:
        Residents({"small": 3, "big": 11}, 10, LRU())
    assert "at most 10" in error.value.expected
    residents = Residents({"a": 6, "b": 6, "c": 6}, 12, LRU())
    assert residents.num_slots == 2
    residents.cap_bytes = 7
    residents.begin("a")
    with pytest.raises(InvariantError, match="resident"):
        residents.begin("b")


def test_nothing_is_resident_before_it_has_arrived() -> None:
    residents = Residents({"a": 1, "b": 1}, 1, LRU())
    residents.use("a")
    residents.begin("a")
    with pytest.raises(InvariantError, match="not resident"):
        residents.slot("a")
    assert residents.begin("b") is None  # it would take the place of one that is being copied
    residents.end("a", arrived=False)
    assert "a" not in residents
    assert residents.begin("b") is not None
    residents.end("b", arrived=True)
    assert residents.slot("b") == 0
    with pytest.raises(InvariantError, match="copied twice"):
        residents.begin("b")


def test_belady_refuses_another_trace() -> None:
    residents = Residents({"a": 1, "b": 1}, 1, Belady(trace=("a", "b")))
    residents.use("a")
    assert residents.ahead == ("b",)
    with pytest.raises(RangeError, match="use 1 is of 'a'"):
        residents.use("a")
    with pytest.raises(RangeError, match="does not know"):
        Residents({"a": 1, "b": 1}, 1, Belady())


def test_under_uniform_routing_hits_are_the_share_that_is_resident() -> None:
    rng = random.Random(0)
    names = [str(i) for i in range(150)]
    residents = Residents(dict.fromkeys(names, 1), 40, LRU())
    trace = [rng.choice(names) for _ in range(20_000)]
    for name in trace:
        residents.use(name)
        if name not in residents:
            residents.begin(name)
            residents.end(name, arrived=True)
    assert residents.hits / residents.uses == pytest.approx(40 / 150, rel=0.05)
