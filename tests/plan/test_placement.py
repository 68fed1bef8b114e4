"""Engines for prompts and for decodes: each phase alone says what both together will do."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import inf

import numpy as np
import pytest

from lightwork.plan.capacity import Problem, capacity
from lightwork.plan.placement import Size, phases, placements
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.loads import Arrival, Given
from lightwork.serve.loads.poisson import Poisson
from lightwork.serve.metrics import Slo
from lightwork.serve.plan import Plan
from lightwork.serve.routers.prefill_decode import PrefillDecode
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.simulate import simulate

LENGTHS = Lognormal(prompt=600, output=40, prompt_sigma=0.5, output_sigma=0.5, max_len=4096)
PROBLEM = Problem(
    plan=Plan(model="shape:llama-3-8b", on="sim:a100x4", use=[Sarathi()], tp=1, pp=1, prefix_cache=False),
    load=Poisson(rate=8.0, num_requests=60, lengths=LENGTHS),
    slo=Slo(ttft_s=0.3, tpot_s=0.03),
)
ARRIVALS = PROBLEM.load.arrivals(np.random.default_rng(0))


def test_numbers_of_engines_balance_the_phases() -> None:
    prefill, decode = [Size(1, 1, 2.0), Size(2, 1, 5.0)], [Size(1, 1, 6.0), Size(2, 1, 10.0)]
    for devices in range(2, 10):
        best = placements(prefill, decode, devices)[0]
        rates = [
            min(n * a.rate, m * b.rate)
            for a, b, n, m in product(prefill, decode, range(1, 9), range(1, 9))
            if n * a.devices + m * b.devices <= devices
        ]
        assert best.rate == max(rates)
        assert best.devices <= devices
    assert placements(prefill, decode, 1) == []
    assert placements(prefill, [], 8) == []


def test_phases_alone_predict_both_together() -> None:
    """Within a quarter, below or above, and where both are short of the other, on its side."""
    plan = PROBLEM.plan
    prefill, decode = phases(PROBLEM, ARRIVALS, [(1, 1)], lambda tp, pp: replace(plan, tp=tp, pp=pp), 4)
    for n, m in ((1, 1), (2, 1), (1, 2)):
        router = PrefillDecode(prefill=n, decode=m)
        both = capacity(replace(PROBLEM, plan=replace(plan, use=[Sarathi(), router])), ARRIVALS).rate
        assert min(n * prefill[0].rate, m * decode[0].rate) == pytest.approx(both, rel=0.25)


def test_a_phase_that_is_never_in_time_has_no_size() -> None:
    late = replace(PROBLEM, slo=Slo(ttft_s=1e-3, tpot_s=0.03))
    assert phases(late, ARRIVALS, [(1, 1)], lambda tp, pp: PROBLEM.plan, 4) == ([], [])


def test_without_a_promise_per_token_decodes_are_bounded_all_the_same() -> None:
    loose = replace(PROBLEM, slo=Slo(ttft_s=0.3, tpot_s=inf))
    _, decode = phases(loose, ARRIVALS, [(1, 1)], lambda tp, pp: PROBLEM.plan, 4)
    assert 0 < decode[0].rate < inf


def test_requests_that_have_begun_are_only_decoded() -> None:
    load = Given([Arrival(0.1 * i, 500, 1 + i % 3) for i in range(12)])
    run = simulate(PROBLEM.plan, load, slo=Slo(0.0, 1.0), begun=True)
    assert (run.summary.num_requests, run.summary.num_finished) == (12, 12)
    assert run.summary.num_within_slo == 12
    assert run.summary.ttft_p99_s == 0.0
    rows = [
        c[2] for s in run.trace.spans if s.kind == "step" and s.rank != "prompts" for c in s.args["chunks"]
    ]
    assert rows == [1] * sum(i % 3 for i in range(12))
    assert sum(s.kind == "pull" for s in run.trace.spans) == 8
