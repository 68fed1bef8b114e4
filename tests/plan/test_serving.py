"""The search for a way to serve: it finds what an exhaustive one finds, and says why."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from lightwork.cli import main
from lightwork.errors import CapacityError, LightworkError, RangeError, SpecError
from lightwork.plan import serving
from lightwork.plan.capacity import PRECISION, Problem, capacity
from lightwork.plan.serving import search
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.loads.burst import Burst
from lightwork.serve.loads.closed_loop import ClosedLoop
from lightwork.serve.loads.conversations import Conversations
from lightwork.serve.loads.poisson import Poisson
from lightwork.serve.metrics import Slo
from lightwork.serve.plan import Plan
from lightwork.serve.routers.prefill_decode import PrefillDecode
from lightwork.serve.routers.replicas import Replicas
from lightwork.serve.schedulers.sarathi import Sarathi

LENGTHS = Lognormal(prompt=400, output=12, prompt_sigma=0.6, output_sigma=0.6, max_len=4096)
PROBLEM = Problem(
    plan=Plan(model="shape:llama-3-8b", on="sim:a100", use=["Sarathi(chunk=512)"]),
    load=Poisson(rate=8.0, num_requests=40, lengths=LENGTHS),
    slo=Slo(ttft_s=0.15, tpot_s=0.03),
)


def test_no_choice_near_the_best_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MAX_SEQS", (64, 16))
    problem = replace(PROBLEM, plan=replace(PROBLEM.plan, on="sim:a100x2"))
    found = search(problem)
    assert {(t.choice.tp, t.choice.pp) for t in found.trials} == {(1, 1), (1, 2), (2, 1)}
    assert sum(isinstance(t.choice.router, PrefillDecode) for t in found.trials) == 1
    arrivals = problem.load.arrivals(rng())
    rates = {}
    for trial in found.trials:
        for max_seqs in serving.MAX_SEQS:
            alone = serving._Search(problem, arrivals, lambda t: None)
            choice = trial.choice._replace(max_seqs=max_seqs)
            alone.take(choice)
            rates[choice] = alone.tried[choice].rate
    assert found.best.rate >= max(rates.values()) * (1 - 2 * PRECISION)
    assert found.best.rate == pytest.approx(rates[found.best.choice], rel=2 * PRECISION)


def rng() -> np.random.Generator:
    return np.random.default_rng(PROBLEM.seed)


def test_a_harder_promise_sustains_less() -> None:
    arrivals = PROBLEM.load.arrivals(rng())
    rates = [
        capacity(replace(PROBLEM, slo=Slo(ttft_s=0.15, tpot_s=tpot)), arrivals).rate
        for tpot in (0.016, 0.03, 0.2)
    ]
    assert rates == sorted(rates)
    assert rates[0] < rates[2] / 1.3


def test_a_load_of_conversations_is_planned() -> None:
    load = Conversations(rate=4.0, num_conversations=12, turns=3.0, lengths=LENGTHS)
    assert search(replace(PROBLEM, load=load)).best.rate > 0


def test_a_router_that_is_asked_for_is_kept() -> None:
    plan = Plan(model="shape:llama-3-8b", on="sim:a100x2", use=["Sarathi", "PrefillDecode()"], tp=1, pp=1)
    found = search(replace(PROBLEM, plan=plan))
    assert {t.choice.router for t in found.trials} == {PrefillDecode()}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"slo": Slo()}, RangeError),
        ({"slo": Slo(ttft_s=-1.0)}, RangeError),
        ({"slo": Slo(tpot_s=0.1)}, RangeError),
        ({"slo": Slo(ttft_s=float("nan"))}, RangeError),
        ({"share": 0.0}, RangeError),
        ({"share": 1.5}, RangeError),
    ],
)
def test_impossible_promises_are_refused(change: dict[str, object], error: type[LightworkError]) -> None:
    with pytest.raises(error) as caught:
        replace(PROBLEM, **change)  # type: ignore[arg-type]
    assert caught.value.fix


def test_what_cannot_be_planned_says_why() -> None:
    for load in (Burst(num_requests=4), ClosedLoop(clients=4)):
        with pytest.raises(SpecError, match="come at once"):
            search(replace(PROBLEM, load=load))
    with pytest.raises(CapacityError, match="at any rate"):
        search(replace(PROBLEM, slo=Slo(ttft_s=1e-6)))
    with pytest.raises(SpecError, match="promise less time"):
        search(replace(PROBLEM, slo=Slo(ttft_s=1e6)))


def test_a_model_that_does_not_fit_on_few_devices_is_split() -> None:
    plan = Plan(model="shape:llama-3-70b", on="sim:a100x4", use=[Sarathi(), Replicas(copies=1)])
    found = search(replace(PROBLEM, plan=plan, slo=Slo(ttft_s=1.0, tpot_s=0.1)))
    assert found.best.choice.tp * found.best.choice.pp >= 2
    assert any("weights take" in t.why for t in found.trials)
    assert any("weights take" in reason for _, _, reason in found.reasons())


def test_the_verb_prints_the_best_its_bound_and_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["plan", "shape:llama-3-8b", "--on", "sim:a100", "--use", "Sarathi", "--load"]
    args += ["Poisson(rate=4, num_requests=30, lengths=Lognormal(prompt=300, output=20))"]
    assert main([*args, "--slo", "ttft=0.2,tpot=0.03"]) == 0
    text = capsys.readouterr().out
    assert "simulated on sim:a100," in text
    assert "requests/s with 90% in time" in text
    assert "bound by" in text
    assert main([*args, "--slo", "ttft=0.2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["simulated"] is True
    assert (found["tp"], found["pp"], found["router"]) == (1, 1, "Replicas(copies=1)")
    assert max(t["rate"] for t in found["tried"] if t["sustained"]) == found["sustained_per_s"]
    assert sum(found["bounds"].values()) == pytest.approx(1.0)


@pytest.mark.parametrize("slo", ["", "ttft", "ttft=x", "tbt=1", "ttft=1;tpot=2"])
def test_a_promise_that_cannot_be_read_is_named(slo: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "shape:llama-3-8b", "--slo", slo]) == 2
    assert "--slo ttft=0.5,tpot=0.05" in capsys.readouterr().err
