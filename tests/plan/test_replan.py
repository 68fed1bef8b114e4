"""Engines that are exchanged when the load changes: noticed once, nothing lost, nobody served twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lightwork.errors import CapacityError
from lightwork.plan.capacity import Problem
from lightwork.plan.replan import CHANGED, WINDOW, Profile, Watch, simulate_replanned
from lightwork.runtime.trace import Span
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.loads import Arrival, Given
from lightwork.serve.loads.poisson import Poisson
from lightwork.serve.metrics import Slo
from lightwork.serve.plan import Plan
from lightwork.serve.routers.prefill_decode import PrefillDecode
from lightwork.serve.routers.replicas import Replicas

LENGTHS = Lognormal(prompt=200, output=20, prompt_sigma=0.3, output_sigma=0.3)
TWO = Plan(
    model="shape:llama-3-8b", on="sim:a100x2", tp=1, pp=1, use=[Replicas(copies=2)], prefix_cache=False
)
APART = replace(TWO, use=[PrefillDecode()])


def load(rate: float, num: int, at_s: float = 0.0) -> list[Arrival]:
    arrivals = Poisson(rate=rate, num_requests=num, lengths=LENGTHS).arrivals(np.random.default_rng(0))
    return [a._replace(at_s=a.at_s + at_s) for a in arrivals]


BEFORE = load(5.0, 300)
CHANGED_LOAD = [*BEFORE, *load(20.0, 900, 60.0)]
PROBLEM = Problem(plan=TWO, load=Given(BEFORE), slo=Slo(1.0, 0.1))


def test_a_change_is_noticed_once_and_everybody_is_served() -> None:
    asked = []

    def search(problem: Problem) -> Plan:
        asked.append(Profile.of(problem.load.arrivals(np.random.default_rng(0))))
        return APART

    run = simulate_replanned(PROBLEM, BEFORE, CHANGED_LOAD, search)
    assert (run.summary.num_requests, run.summary.num_finished) == (1200, 1200)
    assert len(asked) == len(run.moves) == 1
    assert run.moves[0][0] > 60.0
    assert run.moves[0][1] == APART
    assert asked[0].rate > CHANGED * 5.0
    assert asked[0].output == pytest.approx(Profile.of(BEFORE).output, rel=0.2)


def test_the_same_load_is_left_alone() -> None:
    def search(problem: Problem) -> Plan:
        raise AssertionError("nothing has changed")

    run = simulate_replanned(PROBLEM, BEFORE, load(5.0, 600), search)
    assert run.moves == []
    assert run.summary.num_finished == 600


def test_a_search_that_finds_nothing_or_the_same_changes_nothing() -> None:
    def nothing(problem: Problem) -> Plan:
        raise CapacityError("nothing serves that", expected="some", fix="-")

    for search in (None, nothing, lambda problem: TWO):
        run = simulate_replanned(PROBLEM, BEFORE, CHANGED_LOAD, search)
        assert run.moves == []
        assert run.summary.num_finished == 1200


def test_a_load_that_is_changing_is_not_planned_for() -> None:
    watch, known = Watch(), []
    for i in range(3 * WINDOW):
        prompt = 100 if i < WINDOW else 400
        watch.on(Span("engine", "arrive", str(i), 0.5 * i, 0.5 * i, args={"prompt": prompt}))
        watch.on(Span("engine", "finish", str(i), 0.5 * i, 0.5 * i, args={"reason": "length", "output": 7}))
        known.append(bool(watch.recent()))
    assert not any(known[WINDOW + WINDOW // 4 : 2 * WINDOW - WINDOW // 4])
    assert known[WINDOW]
    assert known[2 * WINDOW]


def test_what_comes_is_known_by_what_has_ended() -> None:
    watch = Watch()
    for i in range(WINDOW):
        assert watch.recent() == []
        watch.on(Span("engine", "arrive", str(i), 0.5 * i, 0.5 * i, args={"prompt": 100 + i % 2}))
        watch.on(Span("engine", "finish", str(i), 0.5 * i, 0.5 * i, args={"reason": "length", "output": 7}))
    recent = watch.recent()
    assert recent[:2] == [Arrival(0.0, 100, 7), Arrival(0.5, 101, 7)]
    assert Profile.of(recent) == pytest.approx((2.0, 100.5, 7.0))
