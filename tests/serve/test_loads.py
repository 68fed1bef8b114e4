"""Loads and lengths: what they draw, and that what comes after something else does."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from engines import make_engine, request

from lightwork.errors import CapacityError, LightworkError, SpecError
from lightwork.runtime.kernel import Kernel
from lightwork.serve.lengths import Length
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.lengths.normal import Normal
from lightwork.serve.lengths.published import TRACES, Moments, Published, Quantiles
from lightwork.serve.loads import Arrival, Load, parse_load
from lightwork.serve.loads.burst import Burst
from lightwork.serve.loads.closed_loop import ClosedLoop
from lightwork.serve.loads.conversations import Conversations
from lightwork.serve.loads.documents import Documents
from lightwork.serve.loads.gamma import Gamma
from lightwork.serve.loads.poisson import Poisson
from lightwork.serve.loads.recorded import Recorded
from lightwork.serve.loads.tenants import Tenants
from lightwork.serve.loads.zipf import Zipf
from lightwork.serve.simulate import SyntheticRequests, run_load
from lightwork.techniques import parse

SMALL = Lognormal(prompt=12, output=5, prompt_sigma=0.5, output_sigma=0.5)
LOADS: list[Load] = [
    Burst(lengths=SMALL),
    Poisson(rate=50.0, lengths=SMALL),
    Gamma(rate=50.0, cv=3.0, lengths=SMALL),
    ClosedLoop(clients=3, num_requests=20, think_s=0.01, lengths=SMALL),
    Conversations(rate=50.0, num_conversations=10, turns=3.0, think_s=0.02, lengths=SMALL),
    Documents(num_documents=4, degree=5.0, document=20, lengths=SMALL),
    Tenants(loads=(Poisson(rate=50.0, lengths=SMALL), ClosedLoop(clients=2, num_requests=9, lengths=SMALL))),
    Zipf(models=("", "one"), inner=Poisson(rate=50.0, lengths=SMALL)),
]
LENGTHS: list[Length] = [SMALL, Normal(prompt=30, output=10), *(Published(trace=t) for t in TRACES)]


def rng(seed: int = 0) -> np.random.Generator:
    """A stream as simulations have them."""
    return Kernel(seed=seed).rng("load")


@pytest.mark.parametrize("load", LOADS, ids=lambda load: type(load).__name__)
def test_every_load_is_served_to_its_end(load: Load) -> None:
    arrivals = load.arrivals(rng())
    assert arrivals == load.arrivals(rng())
    assert arrivals != load.arrivals(rng(1))
    assert parse_load(repr(load)) == load
    engine = make_engine(blocks=400)
    seqs = run_load(engine, arrivals, SyntheticRequests(arrivals, 50, rng()))
    assert len(seqs) == len(arrivals)
    for arrival, seq in zip(arrivals, seqs, strict=True):
        assert seq.finished == "length"
        assert seq.num_output == arrival.output_len
        if arrival.after is None:
            assert seq.arrived_s == pytest.approx(arrival.at_s, abs=1e-9)
        else:
            before = seqs[arrival.after]
            assert before.finished_s is not None
            assert seq.arrived_s == pytest.approx(before.finished_s + arrival.at_s, abs=1e-9)
            if arrival.continues:
                assert seq.tokens[: len(before.tokens)] == before.tokens
                assert seq.prompt_len == len(before.tokens) + arrival.prompt_len
    engine.kv.check()
    assert engine.kv.free == engine.kv.total


@pytest.mark.parametrize("lengths", LENGTHS, ids=repr)
def test_lengths_stay_within_their_bounds(lengths: Length) -> None:
    drawn = lengths.draw(rng(), 4000)
    assert len(drawn) == 4000
    assert min(min(pair) for pair in drawn) >= 1
    assert parse(repr(lengths)) == lengths
    fields = {name: getattr(lengths, name) for name in lengths.__dataclass_fields__}  # type: ignore[attr-defined]
    tight = type(lengths)(**{**fields, "max_len": 20})
    assert max(sum(pair) for pair in tight.draw(rng(), 4000)) <= 20


@pytest.mark.parametrize("trace", TRACES)
def test_published_lengths_have_the_published_statistics(trace: str) -> None:
    for column, known in zip(
        zip(*Published(trace=trace).draw(rng(), 100_000), strict=True), TRACES[trace], strict=True
    ):
        if isinstance(known, Quantiles):
            assert np.percentile(column, [50, 90, 99]) == pytest.approx(known[1:], rel=0.05)
        else:
            assert isinstance(known, Moments)
            assert np.std(column) == pytest.approx(known.deviation, rel=0.1)
        lower_half_is_free = trace != "arxiv" or known.mean > 1000
        assert not lower_half_is_free or np.mean(column) == pytest.approx(known.mean, rel=0.08)


def test_gamma_gaps_vary_as_asked() -> None:
    at_s = [a.at_s for a in Gamma(rate=10.0, cv=3.0, num_requests=20_000).arrivals(rng())]
    gaps = [b - a for a, b in pairwise(at_s)]
    assert np.mean(gaps) == pytest.approx(0.1, rel=0.1)
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(3.0, rel=0.1)


def test_a_closed_loop_never_has_more_requests_than_clients() -> None:
    arrivals = ClosedLoop(clients=3, num_requests=30, lengths=SMALL).arrivals(rng())
    seqs = run_load(make_engine(), arrivals, SyntheticRequests(arrivals, 50, rng()))
    for seq in seqs:
        there = [s for s in seqs if s.arrived_s <= seq.arrived_s < (s.finished_s or 0.0)]
        assert len(there) <= 3


def test_conversations_end_before_they_are_too_long() -> None:
    load = Conversations(num_conversations=50, turns=8.0, lengths=SMALL, max_len=60)
    arrivals = load.arrivals(rng())
    said: dict[int, int] = {}
    for i, a in enumerate(arrivals):
        said[i] = a.prompt_len + a.output_len + (said[a.after] if a.after is not None else 0)
    assert max(said[i] for i, a in enumerate(arrivals) if a.continues) <= 60


def test_requests_on_a_document_share_it() -> None:
    arrivals = Documents(num_documents=3, degree=4.0, document=40, lengths=SMALL).arrivals(rng())
    requests = SyntheticRequests(arrivals, 1000, rng())
    texts = {a.shared: requests[i].prompt[:40] for i, a in enumerate(arrivals)}
    assert len(set(texts.values())) == 3
    for a, asked in zip(arrivals, requests, strict=True):
        assert asked.prompt[:40] == texts[a.shared]
        assert len(asked.prompt) == 40 + a.prompt_len
    one_by_one = make_engine(blocks=400, max_seqs=1)
    seqs = run_load(one_by_one, arrivals, requests)
    assert sum(seq.cached for seq in seqs) >= 40 * (len(arrivals) - 3)


@pytest.mark.parametrize("skew", [0.0, 1.0, 2.0])
def test_models_are_asked_by_a_power_of_their_rank(skew: float) -> None:
    names, num = ("", "one", "two", "three"), 20_000
    inner = Burst(num_requests=num, lengths=SMALL)
    arrivals = Zipf(models=names, skew=skew, inner=inner).arrivals(rng())
    assert [a._replace(model="") for a in arrivals] == inner.arrivals(rng())
    asked = Counter(a.model for a in arrivals)
    total = sum(i**-skew for i in range(1, 5))
    for i, name in enumerate(names, 1):
        assert asked[name] / num == pytest.approx(i**-skew / total, abs=0.015)
    requests = SyntheticRequests(arrivals, 50, rng(), {"one": "one@3"})
    assert [r.model for r in requests[:50]] == [{"one": "one@3"}.get(a.model, a.model) for a in arrivals[:50]]


def test_a_conversation_stays_with_its_model() -> None:
    talk = Conversations(rate=50.0, num_conversations=30, turns=4.0, lengths=SMALL)
    arrivals = Zipf(models=("", "one", "two"), inner=Tenants(loads=(talk, talk))).arrivals(rng())
    later = [a for a in arrivals if a.continues]
    assert len(later) > 60
    assert {a.model for a in later} == {"", "one", "two"}
    for a in later:
        assert a.after is not None
        assert a.model == arrivals[a.after].model


def test_a_follower_that_is_refused_is_an_error_of_the_whole_load() -> None:
    arrivals = [Arrival(0.0, 4, 4), Arrival(0.1, 4, 4, after=0)]
    with pytest.raises(CapacityError):
        run_load(make_engine(blocks=4), arrivals, [request(range(4), 4), request(range(40), 4)])


OURS = "at_s,prompt,output\n7.5,30,4\n5,10,2\n"
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:17:03.9799600,10,2\n2023-11-16 18:17:06.4799600,30,4\n"
)


VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,10,2\n2.5,30,4\n"


@pytest.mark.parametrize("text", [OURS, AZURE, VIDUR], ids=["ours", "azure", "vidur"])
def test_a_recorded_trace_is_read_from_its_first_request(tmp_path: Path, text: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    first, second = Recorded(path=str(file), speed=2.0).arrivals(rng())
    assert first == Arrival(0.0, 10, 2)
    assert second.at_s == pytest.approx(1.25)
    assert second[1:3] == (30, 4)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (None, "cannot be read"),
        ("", "has columns"),
        ("at_s,prompt\n1,2\n", "has columns at_s, prompt"),
        ("at_s,prompt,output\n", "no requests"),
        ("at_s,prompt,output\n1,2,3\n1,x,3\n", "line 3"),
        ("at_s,prompt,output\nnan,2,3\n", "line 2"),
        ("at_s,prompt,output\n1,0,3\n", "line 2"),
        ("at_s,prompt,output\n1,2\n", "line 2"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_trace_that_cannot_be_read_is_named(tmp_path: Path, text: str | bytes | None, wrong: str) -> None:
    file = tmp_path / "trace.csv"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SpecError, match=wrong):
        Recorded(path=str(file)).arrivals(rng())


@pytest.mark.parametrize(
    "text",
    [
        "Burst(num_requests=0)",
        "Poisson(rate=0.0)",
        "Gamma(cv=-1.0)",
        "ClosedLoop(clients=0)",
        "Conversations(turns=0.5)",
        "Documents(degree=0.0)",
        "Zipf(models=())",
        "Zipf(skew=-1.0)",
        "Recorded(path='x', speed=0.0)",
        "Poisson(lengths=Lognormal(prompt=0))",
        "Poisson(lengths=Normal(spread=-1.0))",
        "Poisson(lengths=Published(trace='mine'))",
        "Poisson(lengths=Lognormal(max_len=1))",
    ],
)
def test_impossible_loads_are_refused_with_what_to_do(text: str) -> None:
    with pytest.raises(LightworkError) as caught:
        parse_load(text)
    assert caught.value.fix
