"""Fairness: what each tenant is served while all of them want more."""

from __future__ import annotations

from collections import Counter

import numpy as np
from engines import make_engine, request

from lightwork.serve.lengths.normal import Normal
from lightwork.serve.loads.conversations import Conversations
from lightwork.serve.loads.poisson import Poisson
from lightwork.serve.loads.tenants import Tenants
from lightwork.serve.schedulers import Scheduler
from lightwork.serve.schedulers.fair import Fair
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import SyntheticRequests, run_load


def jain(served: list[float]) -> float:
    """1 if all are served alike, 1/n if one gets everything (Jain, Chiu and Hawe, 1984)."""
    return sum(served) ** 2 / (len(served) * sum(x * x for x in served))


def index_while_all_want_more(scheduler: Scheduler[object], weights: float = 2.0) -> float:
    """Eight tenants, of which one sends ten times as much; Jain's index of what was served at half time."""
    lengths = Normal(prompt=24, output=8, spread=0.2)
    many, few = (Poisson(rate=r, num_requests=int(3 * r), lengths=lengths) for r in (200.0, 20.0))
    arrivals = Tenants(loads=(many, *[few] * 7)).arrivals(np.random.default_rng(0))
    engine = make_engine(scheduler, blocks=120, max_seqs=8, max_waiting=10_000)
    seqs = run_load(engine, arrivals, SyntheticRequests(arrivals, 50, np.random.default_rng(0)))
    few_end = min(max(end(s) for s in seqs if s.request.tenant == t) for t in map(str, range(1, 8)))
    served: Counter[str] = Counter()
    for seq in seqs:
        if end(seq) <= few_end:
            served[seq.request.tenant] += seq.prompt_len + int(weights * seq.num_output)
    return jain([served[t] for t in map(str, range(8))])


def end(seq: Seq) -> float:
    assert seq.finished_s is not None
    return seq.finished_s


def test_who_sends_ten_times_as_much_is_served_as_much_as_the_others() -> None:
    assert index_while_all_want_more(Fair(inner=Sarathi(chunk=32))) >= 0.95
    assert index_while_all_want_more(Sarathi(chunk=32)) <= 0.6


def test_nothing_is_saved_up_while_idle() -> None:
    """Tenant b comes late. If its counter stood at nothing, all of its requests would run before a's."""
    engine = make_engine(Fair(inner=Sarathi(chunk=8)), max_seqs=1)
    load = [request([i] * 6, max_tokens=4, tenant="a") for i in range(12)]
    load += [request([i] * 6, max_tokens=4, tenant="b") for i in range(4)]
    seqs = run_load(engine, [0.0] * 12 + [0.05] * 4, load)
    late = sorted((seq for seq in seqs if end(seq) > 0.055), key=end)
    assert sorted(seq.request.tenant for seq in late[:3]) == ["a", "b", "b"]


def test_loads_of_tenants_are_merged_by_time_and_keep_what_follows_what() -> None:
    lengths = Normal(prompt=8, output=4)
    load = Tenants(
        loads=(
            Poisson(rate=5.0, num_requests=9, lengths=lengths),
            Conversations(rate=5.0, num_conversations=4, turns=3.0, lengths=lengths),
        )
    )
    arrivals = load.arrivals(np.random.default_rng(0))
    begun = [a.at_s for a in arrivals if a.after is None]
    assert begun == sorted(begun)
    assert {a.tenant for a in arrivals} == {"0", "1"}
    assert all(a.tenant == arrivals[a.after].tenant for a in arrivals if a.after is not None)
    engine = make_engine(blocks=400)
    seqs = run_load(engine, arrivals, SyntheticRequests(arrivals, 50, np.random.default_rng(0)))
    assert [seq.request.tenant for seq in seqs] == [a.tenant for a in arrivals]
