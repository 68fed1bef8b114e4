"""Figures of a run: what the meter keeps says what the spans say."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from engines import make_engine, request

from lightwork.decode.proposers.ngram import Ngram
from lightwork.runtime.trace import Trace
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.loads.conversations import Conversations
from lightwork.serve.metrics import Meter, request_times, summarise
from lightwork.serve.plan import Plan
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.simulate import run_load, simulate


def busy_trace() -> Trace:
    """Short of blocks, so that some are preempted; with drafts and several continuations."""
    engine = make_engine(Sarathi(chunk=16), blocks=24, proposer=Ngram(k=3))
    load = [request(range(i, i + 6), max_tokens=12, n=1 + i % 2) for i in range(12)]
    run_load(engine, [0.002 * i for i in range(12)], load)
    assert engine.kernel.trace is not None
    return engine.kernel.trace


def test_the_meter_says_what_the_spans_say() -> None:
    trace = busy_trace()
    found = summarise(trace, simulated=True)
    times = list(request_times(trace.spans).values())
    gaps = [b - a for t in times for a, b in pairwise(t.tokens_s)]
    ttft = [t.tokens_s[0] - t.arrived_s for t in times]
    queue = [t.started_s - t.arrived_s for t in times if t.started_s is not None]
    tokens = sum(len(t.tokens_s) for t in times)
    assert found.num_requests == found.num_finished == len(times) == 18
    assert found.num_preempted == sum(t.num_preempted for t in times) > 0
    assert tokens == 18 * 12
    assert found.output_tokens_per_s == pytest.approx(tokens / found.duration_s)
    assert found.duration_s == pytest.approx(max(t.tokens_s[-1] for t in times) - times[0].arrived_s)
    assert [found.tbt_p50_s, found.tbt_p99_s] == pytest.approx(np.percentile(gaps, [50, 99]), rel=1e-6)
    assert found.tbt_max_s == pytest.approx(max(gaps), rel=1e-6)
    assert [found.ttft_p50_s, found.ttft_p99_s] == pytest.approx(np.percentile(ttft, [50, 99]))
    assert found.queue_p50_s == pytest.approx(np.median(queue))


def test_a_run_of_nothing_has_figures_of_zero() -> None:
    assert set(Meter().summary(simulated=True).to_dict().values()) == {True, 0}


def test_a_simulation_may_keep_its_spans_or_not() -> None:
    load = Conversations(rate=2.0, num_conversations=6, lengths=Lognormal(prompt=60, output=8))
    plan = Plan(model="tiny:llama", on="sim:a100")
    kept, dropped = (simulate(plan, load, keep_spans=keep) for keep in (True, False))
    assert kept.summary == dropped.summary == summarise(kept.trace, simulated=True)
    assert len(kept.trace.spans) > 0
    assert len(dropped.trace.spans) == 0
