"""A run folder is served again: the same tokens and the same decisions, or the first that is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import httpx
import pytest

from lightwork.cli import main
from lightwork.decode.sampling import Sampling
from lightwork.errors import LightworkError, SpecError
from lightwork.plan.why import Record, explain
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.http.main import BackgroundServer, load
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.loads import Arrival, Load
from lightwork.serve.loads.closed_loop import ClosedLoop
from lightwork.serve.loads.poisson import Poisson
from lightwork.serve.metrics import request_times
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan
from lightwork.serve.plan_file import plan_of
from lightwork.serve.rerun import rerun
from lightwork.serve.run_folder import EVENTS, Recorder, built, read_run, to_line
from lightwork.serve.sequence import Request
from lightwork.serve.simulate import offer, simulate

Make = Callable[..., Path]
LOAD = Poisson(rate=20.0, num_requests=30, lengths=Lognormal(prompt=300, output=90, prompt_sigma=0.5))

SIMULATED: dict[str, tuple[Load, Plan]] = {
    "preempted": (LOAD, Plan(kv_bytes=2 << 28)),
    "other engines": (LOAD, Plan(use=("PrefillDecode()",), on="sim:a100x2")),
    "host memory": (LOAD, Plan(use=("FastSwitch(every=4, stay=0.2)", "HostMemory(gb=8)"), kv_bytes=2 << 28)),
    "stages": (LOAD, Plan(pp=2, on="sim:a100x2")),
    "answers that are waited for": (ClosedLoop(clients=4, num_requests=16), Plan()),
}


@pytest.mark.parametrize("name", SIMULATED)
def test_a_simulated_run_is_the_same_to_the_last_bit(tmp_path: Path, name: str) -> None:
    load, plan = SIMULATED[name]
    plan = replace(plan, model="shape:llama-3-8b", on=plan.on if "sim:" in plan.on else "sim:a100", tp=1)
    ran = simulate(plan, load, seed=3, record=tmp_path / "run")
    recorded = read_run(tmp_path / "run")
    assert recorded.trace.hash() == _as_read(ran.trace)
    again = rerun(recorded, plan_of(recorded.trace.about))
    assert again.difference is None
    assert again.events == len(ran.trace.spans)
    assert again.tokens == sum(len(text) for _, text in recorded.texts.values()) > 0
    assert ("preempt" in {span.kind for span in ran.trace.spans}) >= (name == "preempted")


def _as_read(trace: Trace) -> str:
    """Its hash with lists where a file has lists."""
    read = Trace(trace.label)
    for span in trace.spans:
        read.add(span._replace(args=json.loads(json.dumps(span.args))))
    return read.hash()


REAL: dict[str, Plan] = {
    "plain": Plan(),
    "preempted": Plan(kv_bytes=300 * 384, use=("Sarathi(chunk=64)",)),
    "drafts": Plan(use=("Ngram(k=4)",)),
    "two steps in flight": Plan(depth=2),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_run_decides_and_says_the_same(checkpoint: Make, tmp_path: Path, name: str) -> None:
    folder = _served(replace(REAL[name], model=str(checkpoint("llama")), max_len=200), tmp_path / "run")
    recorded = read_run(folder)
    again = rerun(recorded, plan_of(recorded.trace.about))
    assert again.difference is None
    assert (again.compared, again.why) == ("decisions, without times", "")
    assert again.events > 30
    assert again.tokens == 12 * 20
    kinds = {span.kind for span in recorded.trace.spans}
    assert ("preempt" in kinds) >= (name == "preempted")


@pytest.mark.multiproc
def test_engines_in_processes_say_the_same_and_nothing_is_claimed_of_their_decisions(
    checkpoint: Make, tmp_path: Path
) -> None:
    plan = Plan(model=str(checkpoint("llama")), max_len=200, use=("Replicas(copies=2)",))
    recorded = read_run(_served(plan, tmp_path / "run"))
    again = rerun(recorded, plan_of(recorded.trace.about))
    assert again.difference is None
    assert again.tokens == 12 * 20
    assert again.compared == ""
    assert again.why.startswith("engines are processes of their own")


def test_the_parts_of_a_real_life_sum_to_it(checkpoint: Make, tmp_path: Path) -> None:
    """Within 1 % is what is promised; they are its own times, so they sum to it."""
    plan = replace(REAL["preempted"], model=str(checkpoint("llama")), max_len=200)
    spans = read_run(_served(plan, tmp_path / "run")).trace.spans
    for seq_id, times in request_times(spans).items():
        life_s = times.tokens_s[-1] - times.arrived_s
        assert sum(part.seconds for part in explain(spans, seq_id)) == pytest.approx(life_s, rel=0.01)


def _served(plan: Plan, folder: Path) -> Path:
    """Twelve requests, some of which come while others are served; sampled, every third with a seed of its
    own."""
    kernel = Kernel(WallClock(), trace=Trace("real: cpu"))
    engine, model, _ = open_engine(plan, kernel)
    arrivals = [Arrival(0.002 * (i // 3), 1, 1) for i in range(12)]
    asked = [
        Request(
            prompt=tuple(range(10, 40 + 3 * i)), max_tokens=20, sampling=Sampling(temperature=0.8, seed=i % 3)
        )
        for i in range(12)
    ]
    assert kernel.trace is not None
    try:
        with Recorder(folder, engine, kernel.trace) as recorder:
            offer(engine, arrivals, asked, recorder)
    finally:
        engine.close()
        model.close()
    return folder


@pytest.fixture(scope="module")
def asked_over_http(checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stop strings, several continuations, drafts, and one who hangs up."""
    folder = tmp_path_factory.mktemp("http") / "run"
    plan = Plan(model=str(checkpoint("llama")), max_len=200, use=("Ngram(k=3)",))
    with BackgroundServer(load(plan, name="tiny", keep_spans=None, record=folder)) as url:
        for i in range(3):
            body = {"model": "tiny", "prompt": f"say {i}", "max_tokens": 30, "seed": i, "n": 2, "stop": ["e"]}
            assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200
        endless = {"model": "tiny", "prompt": "go on", "max_tokens": 150, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=endless, timeout=60) as reply:
            next(reply.iter_lines())
    return folder


def test_what_clients_asked_is_asked_again(asked_over_http: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(asked_over_http)]) == 0
    said = capsys.readouterr().out
    assert "4 requests" in said
    assert "the same (decisions, without times)" in said
    reasons = [reason for reason, _ in read_run(asked_over_http).texts.values()]
    assert "stop" in reasons


def test_why_and_trace_read_a_run_folder(asked_over_http: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", str(asked_over_http), "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sum(part["seconds"] for part in told["parts"]) == pytest.approx(told["seconds"])
    assert main(["trace", str(asked_over_http), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["lanes"]
    assert {file.name for file in asked_over_http.iterdir()} == {
        "plan.toml",
        "events.jsonl",
        "metrics.json",
        "trace.json",
    }


def test_a_folder_and_a_trace_predict_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["sim", "shape:llama-3-8b", "--on", "sim:a100", "--load", "Poisson(rate=4, num_requests=20)"]
    assert main([*asked, "--trace", str(tmp_path / "run")]) == 0
    record = Record.of(read_run(tmp_path / "run").trace)
    assert record.predict(record.plan) == pytest.approx(record.figures, rel=1e-6)
    capsys.readouterr()
    assert main(["run", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["difference"] is None


def test_the_first_difference_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(model="shape:llama-3-8b", on="sim:a100", tp=1)
    simulate(plan, LOAD, record=tmp_path / "run")
    file = tmp_path / "run" / "plan.toml"
    file.write_text(file.read_text().replace("use = []", 'use = ["PrefillFirst()"]'))
    assert main(["run", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "is not the same\n  recorded: " in said
    assert '"chunks"' in said


def test_another_token_is_a_difference(checkpoint: Make, tmp_path: Path) -> None:
    folder = _served(Plan(model=str(checkpoint("llama")), max_len=200), tmp_path / "run")
    recorded = read_run(folder)
    reason, text = recorded.texts[5]
    recorded.texts[5] = (reason, (*text[:7], text[7] + 1, *text[8:]))
    difference = rerun(recorded, plan_of(recorded.trace.about)).difference
    assert difference is not None
    assert difference.where == "token 7 of sequence 5"
    assert (difference.recorded, difference.now) == (str(text[7] + 1), str(text[7]))


def test_a_run_that_was_killed_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    simulate(Plan(model="shape:llama-3-8b", on="sim:a100", tp=1), LOAD, record=tmp_path / "run")
    whole = (tmp_path / "run" / EVENTS).read_text()
    (tmp_path / "run" / EVENTS).write_text(whole[: len(whole) // 2])
    recorded = read_run(tmp_path / "run")
    assert 0 < len(recorded.trace.spans) < whole.count('"span"')
    again = rerun(recorded, plan_of(recorded.trace.about))
    assert again.difference is None
    assert again.events == len(recorded.trace.spans)


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(LightworkError, match="holds files already"):
        simulate(Plan(model="shape:llama-3-8b", on="sim:a100", tp=1), LOAD, record=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_request_is_read_as_it_was_asked() -> None:
    how = Sampling(temperature=0.3, top_p=0.9, seed=2**53 - 1, logit_bias=((3, -1.5), (7, 2.0)), logprobs=3)
    asked = Request(
        prompt=(1, 2, 3),
        max_tokens=4,
        sampling=how,
        stop_ids=frozenset({5, 9}),
        n=2,
        prompt_logprobs=1,
        tenant="t",
        model="m",
        id="x",
    )
    assert built(Request, json.loads(to_line(asdict(asked)))) == asked


@pytest.mark.parametrize(
    "text", ["", "{}\n", "[1]\n", '{"label": "x", "about": {}, "seed": 0}\n{"span": [1]}\n', "x\n"]
)
def test_what_is_no_run_folder_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / EVENTS).write_text(text)
    with pytest.raises(SpecError, match="cannot be understood"):
        read_run(tmp_path)
    with pytest.raises(SpecError, match="is no run folder"):
        read_run(tmp_path / "absent")
