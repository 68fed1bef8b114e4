"""Why a request took so long: parts that sum to its life; and what would have helped, predicted and
measured."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lightwork.cli import main
from lightwork.decode.proposers.ngram import Ngram
from lightwork.decode.sampling import Sampling
from lightwork.errors import SpecError
from lightwork.memory.tiers.host_memory import HostMemory
from lightwork.plan.why import Figures, Record, explain
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.perfetto import read_chrome_trace, write_chrome_trace
from lightwork.runtime.trace import Trace
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.loads.burst import Burst
from lightwork.serve.loads.poisson import Poisson
from lightwork.serve.metrics import request_times, summarise
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan
from lightwork.serve.routers.prefill_decode import PrefillDecode
from lightwork.serve.schedulers.fast_switch import FastSwitch
from lightwork.serve.schedulers.prefill_first import PrefillFirst
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.schedulers.static_batches import StaticBatches
from lightwork.serve.sequence import Request
from lightwork.serve.simulate import SyntheticRequests, run_load, simulate

LOAD = Poisson(rate=8.0, num_requests=60, lengths=Lognormal(prompt=700, output=60, prompt_sigma=0.8))


def simulated(*use: object, **plan: Any) -> Trace:
    settings = {"tp": 1, "pp": 1} | plan
    return simulate(Plan(model="shape:llama-3-8b", on="sim:a100x2", use=use, **settings), LOAD).trace


@pytest.mark.parametrize(
    ("use", "plan"),
    [
        ((Sarathi(chunk=256),), {}),
        ((PrefillFirst(),), {"kv_bytes": 6 << 28}),
        ((PrefillDecode(),), {}),
        ((FastSwitch(every=4, stay=0.2), HostMemory(gb=8)), {"kv_bytes": 6 << 28}),
        ((Sarathi(),), {"pp": 2}),
    ],
    ids=str,
)
def test_parts_sum_to_each_request_s_life(use: tuple[object, ...], plan: dict[str, Any]) -> None:
    trace = simulated(*use, **plan)
    seen = set()
    for seq_id, times in request_times(trace.spans).items():
        parts = explain(trace.spans, seq_id)
        assert sum(p.seconds for p in parts) == pytest.approx(times.tokens_s[-1] - times.arrived_s, rel=1e-9)
        assert all(p.seconds >= 0 for p in parts)
        seen |= {p.name for p in parts}
    assert {"prefill", "decode"} <= seen
    if isinstance(use[0], PrefillDecode):
        assert "pull" in seen
    if len(use) == 2:
        assert {"preempted", "fetch"} <= seen


def test_a_queue_names_who_was_served_meanwhile() -> None:
    trace = simulated(PrefillFirst(), max_seqs=1)
    waited = {i: {p.name: p for p in explain(trace.spans, i)}.get("queue") for i in range(60)}
    behind = [part.note for part in waited.values() if part is not None and part.seconds > 0.5]
    assert behind
    assert all(note.startswith("behind ") and "rows" in note for note in behind)


def test_an_unknown_sequence_is_named_with_those_there_are() -> None:
    with pytest.raises(SpecError, match="no step of this trace contains sequence 99") as caught:
        explain(simulated().spans, 99)
    assert caught.value.expected == "0 to 59"


def test_a_record_predicts_itself_and_what_would_help(tmp_path: Path) -> None:
    """Simulated, the recorded plan gives the recorded figures; the best change is better in the same
    simulation."""
    trace = simulated(PrefillFirst())
    write_chrome_trace(tmp_path / "run.json", [trace])
    record = Record.of(read_chrome_trace(tmp_path / "run.json")[0])
    changes = list(record.changes())
    assert changes[0].figures == pytest.approx(record.figures, rel=1e-6)
    best = max(changes, key=lambda change: change.gain)
    run = simulate(best.plan, LOAD).trace
    lives = [t.tokens_s[-1] - t.arrived_s for t in request_times(run.spans).values()]
    assert sum(lives) / len(lives) == pytest.approx(best.figures.latency_mean_s, rel=1e-6)
    assert best.gain > 1


@pytest.mark.parametrize("use", [(), ("PrefillDecode()",), ("Replicas(copies=2)",)], ids=str)
def test_a_record_says_the_same_when_it_comes_from_a_file(tmp_path: Path, use: tuple[str, ...]) -> None:
    """Steps of several engines are in the order of their end, behind what came before."""
    trace = simulated(*use)
    write_chrome_trace(tmp_path / "run.json", [trace])
    (back,) = read_chrome_trace(tmp_path / "run.json")
    assert Record.of(back).figures == pytest.approx(Record.of(trace).figures, rel=1e-6)
    for now, then in zip(
        summarise(back, simulated=True).to_dict().values(),
        summarise(trace, simulated=True).to_dict().values(),
        strict=True,
    ):
        assert now == pytest.approx(then, rel=1e-6)


def test_a_record_of_training_is_not_predicted() -> None:
    trace = simulated()
    trace.about = {**trace.about, "use": ["LoraTuning()", "CoServe()"]}
    with pytest.raises(SpecError, match="training"):
        Record.of(trace)


def test_a_real_run_is_predicted_by_its_own_step_times(tmp_path: Path) -> None:
    """Nothing beyond what the record has seen: no larger batch than its own."""
    plan = Plan(prefix_cache=False, max_len=512)
    kernel = Kernel(WallClock(), trace=Trace("real: cpu"))
    engine, model, _ = open_engine(plan, kernel)
    arrivals = Burst(num_requests=24, lengths=Lognormal(prompt=40, output=40)).arrivals(kernel.rng("load"))
    run_load(engine, arrivals, SyntheticRequests(arrivals, model.spec.vocab_size, kernel.rng("prompts")))
    model.close()
    assert kernel.trace is not None
    write_chrome_trace(tmp_path / "run.json", [kernel.trace])
    record = Record.of(read_chrome_trace(tmp_path / "run.json")[0])
    assert record.calibration is not None
    changes = {change.name: change for change in record.changes()}
    assert {"as recorded", "max_seqs=64", "Sarathi(chunk=256)"} <= changes.keys()
    assert "max_seqs=256" not in changes
    assert all(change.figures.latency_mean_s > 0 for change in changes.values())
    assert record.measure(changes["max_seqs=64"].plan).latency_mean_s > 0
    assert {"prefill", "decode"} <= {part.name for part in explain(kernel.trace.spans, 20)}


@pytest.mark.parametrize(
    ("use", "settings", "what"),
    [((), {}, "plain"), ((Ngram(k=4),), {}, "drafted"), ((), {"kv_bytes": 2_000_000}, "preempted")],
    ids=["plain", "drafted", "preempted"],
)
def test_parts_sum_to_the_life_of_real_requests(
    use: tuple[object, ...], settings: dict[str, Any], what: str
) -> None:
    """Also of those that drafts were checked for, and of those that were preempted."""
    trace = recorded(Plan(prefix_cache=False, max_len=256, use=use, **settings))
    seen = {span.kind for span in trace.spans}
    drafted = sum(c[3] for span in trace.spans if span.kind == "step" for c in (span.args or {})["chunks"])
    assert ("preempt" in seen, drafted > 0) == (what == "preempted", what == "drafted")
    times = request_times(trace.spans)
    assert len(times) == 16
    for seq_id, life in times.items():
        parts = explain(trace.spans, seq_id)
        assert sum(part.seconds for part in parts) == pytest.approx(
            life.tokens_s[-1] - life.arrived_s, rel=0.01
        )
        assert all(part.seconds >= 0 for part in parts)


def recorded(plan: Plan) -> Trace:
    """A real run of the built-in model: sixteen requests at once that say the same again and again."""
    kernel = Kernel(WallClock(), trace=Trace("real: cpu"))
    engine, model, _ = open_engine(plan, kernel)
    load = [
        Request(
            prompt=tuple([5, 6, 7, 8] * 5), max_tokens=10 + 6 * (i % 8), sampling=Sampling(temperature=0.0)
        )
        for i in range(16)
    ]
    run_load(engine, [0.0] * len(load), load)
    engine.close()
    model.close()
    assert kernel.trace is not None
    return kernel.trace


def test_the_verb_measures_what_it_recommends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a real run whose batches wait for their longest: the predicted gain, and the one that is had."""
    write_chrome_trace(
        tmp_path / "run.json",
        [recorded(Plan(prefix_cache=False, max_len=256, max_seqs=4, use=(StaticBatches(),)))],
    )
    assert main(["why", str(tmp_path / "run.json"), "--best", "--measure"]) == 0
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert {"recorded", "as"} <= rows.keys()
    told = re.search(r"^measured (.+): ([\d.]+)x, predicted ([\d.]+)x$", shown, re.MULTILINE)
    assert told is not None
    best, measured, predicted = told[1], float(told[2]), float(told[3])
    assert f"{predicted:.2f}x" in rows[best.split()[0]]
    assert predicted > 1
    assert measured > 0
    assert main(["why", str(tmp_path / "run.json"), "--best", "--measure", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert [set(each) for each in figures["measured"]] == [set(Figures._fields)] * 2


def test_a_trace_of_something_else_is_refused() -> None:
    with pytest.raises(SpecError, match="does not say what was run"):
        Record.of(Trace("real: ranks"))


def test_the_verb_explains_and_recommends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "run.json")
    assert main(["sim", "shape:llama-3-8b", "--on", "sim:a100", "--trace", file]) == 0
    capsys.readouterr()
    assert main(["why", file, "3"]) == 0
    shown = capsys.readouterr().out
    assert "sequence 3" in shown
    assert "prefill" in shown
    assert main(["why", file, "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sum(part["seconds"] for part in told["parts"]) == pytest.approx(told["seconds"])
    assert main(["why", file, "--best", "--json"]) == 0
    gains = [change["gain"] for change in json.loads(capsys.readouterr().out)["changes"]]
    assert all(a >= b for a, b in pairwise(gains))
    assert main(["why", file]) == 2
    assert "an ID, or --best" in capsys.readouterr().err
