"""A server that trains an adapter while it answers, and serves it when it is done."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("torch")

from lightwork.decode.sampling import Sampling
from lightwork.errors import RangeError, SpecError
from lightwork.models import read_shape, resolve
from lightwork.models.peft import read_adapter, write_adapter
from lightwork.models.tokenizer import Tokenizer
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.engine import Engine
from lightwork.serve.http.main import BackgroundServer, _Epochs, _server, load
from lightwork.serve.lengths.normal import Normal
from lightwork.serve.loads.poisson import Poisson
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan
from lightwork.serve.schedulers.co_serve import CoServe
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Request
from lightwork.serve.simulate import Report, run_load, simulate
from lightwork.testing import random_adapter
from lightwork.train.examples import read_examples
from lightwork.train.tunings.lora_tuning import LoraTuning

Make = Callable[..., Path]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = Random(0)
    file = tmp_path / "examples.jsonl"
    lines = (" ".join(rng.choice(["one", "two", "three", "the", "of"]) for _ in range(12)) for _ in range(10))
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return file


def request(model: str, seed: int) -> Request:
    rng = np.random.default_rng(seed)
    prompt = tuple(int(t) for t in rng.integers(0, 90, 20))
    return Request(prompt=prompt, max_tokens=12, sampling=Sampling(temperature=0.0), model=model)


def outputs(engine: Engine, model: str) -> list[list[int]]:
    seqs = run_load(engine, [0.0] * 4, [request(model, i) for i in range(4)])
    return [seq.tokens[seq.prompt_len :] for seq in seqs]


def test_an_adapter_is_trained_while_others_are_served_and_served_when_done(
    checkpoint: Make, data: Path, tmp_path: Path
) -> None:
    folder, out = str(checkpoint("llama")), tmp_path / "mine"
    plain, model, _ = open_engine(Plan(model=folder, kv_bytes=1 << 24), Kernel(WallClock()))
    assert isinstance(plain, Engine)
    want = outputs(plain, "")
    model.close()
    tuning = LoraTuning(data=str(data), out=str(out), rank=4, epochs=3, batch=4, learning_rate=0.05)
    kernel = Kernel(WallClock(), trace=Trace("test"))
    plan = Plan(model=folder, use=(tuning, CoServe(slo_s=0.2)), kv_bytes=1 << 24)
    engine, model, settings = open_engine(plan, kernel)
    assert isinstance(engine, Engine)
    assert "training" in {setting.name for setting in settings}
    assert outputs(engine, "") == want
    serving = kernel.spawn(engine.run(), name="engine")
    assert kernel.trace is not None
    while sum(span.kind == "serve adapter" for span in kernel.trace.spans) < 3:  # after each epoch
        kernel.run(until_s=kernel.now() + 0.05)
    serving.cancel()
    assert sum(span.kind == "update" for span in kernel.trace.spans) == 8
    assert outputs(engine, "") == want
    tuned = outputs(engine, model.variants["mine"])
    assert tuned != want
    model.close()
    assert read_adapter(out, model.spec).rank == 4
    again, model, _ = open_engine(
        Plan(model=folder, use=(f"Lora(folder={str(tmp_path)!r})",), kv_bytes=1 << 24), Kernel(WallClock())
    )
    assert isinstance(again, Engine)
    assert outputs(again, model.variants["mine"]) == tuned
    model.close()


def test_a_simulated_place_trains_in_the_time_that_is_left(
    checkpoint: Make, data: Path, tmp_path: Path
) -> None:
    """As many tokens as the examples have; the rest of them after the load is not simulated."""
    tuning = LoraTuning(data=str(data), out=str(tmp_path / "new"), epochs=2)
    offered = Poisson(rate=100.0, num_requests=200, lengths=Normal(prompt=30, output=20))
    model = str(checkpoint("llama"))

    def run(*use: Any) -> Report:
        return simulate(Plan(model=model, on="sim:a100", use=use), offered)

    examples = read_examples(data, Tokenizer(resolve(model)), 512)
    trained, plain = run(tuning, CoServe(slo_s=0.05)), run()
    assert ("training", "20 sequences") in [setting[:2] for setting in trained.settings]
    assert trained.summary.trained_tokens == 2 * sum(len(e.tokens) for e in examples)
    assert trained.summary.num_finished == plain.summary.num_finished == 200
    assert plain.summary.trained_tokens == 0
    assert plain.summary.tbt_p99_s < trained.summary.tbt_max_s < 0.05
    with pytest.raises(SpecError, match="cannot be read"):
        run(LoraTuning(data="none.jsonl", out=tuning.out))


def test_a_folder_that_is_lost_meanwhile_ends_training_only(
    checkpoint: Make, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, kernel = tmp_path / "mine", Kernel(WallClock(), trace=Trace("test"))
    use = (LoraTuning(data=str(data), out=str(out)), CoServe(slo_s=0.2))
    engine, model, _ = open_engine(Plan(model=str(checkpoint("llama")), use=use, kv_bytes=1 << 24), kernel)
    assert isinstance(engine, Engine)
    out.rmdir()
    out.write_text("in the way")
    want = outputs(engine, "")
    serving = kernel.spawn(engine.run(), name="engine")
    assert kernel.trace is not None
    while not any(span.kind == "training failed" for span in kernel.trace.spans):
        kernel.run(until_s=kernel.now() + 0.05)
    serving.cancel()
    assert "training has stopped" in caplog.text
    assert not model.variants
    assert outputs(engine, "") == want
    model.close()


def test_a_server_tells_of_each_epoch_and_trains_no_more_when_it_is_to_end(
    checkpoint: Make, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuning = LoraTuning(data=str(data), out=str(tmp_path / "mine"), rank=2, epochs=100_000)
    plan = Plan(model=str(checkpoint("llama")), use=(tuning, CoServe(slo_s=1.0)), kv_bytes=1 << 24)
    loaded = load(plan, observers=[_Epochs()])
    figures: dict[str, float] = {}
    with BackgroundServer(loaded) as url, httpx.Client(base_url=url, timeout=60) as http:
        while "mine" not in loaded.model.variants:
            lines = (line.split() for line in http.get("/metrics").text.splitlines() if line[0] != "#")
            figures = {name: float(value) for name, value in lines}
        bodies = [{"model": name, "input": [[*range(40)]]} for name in (loaded.name, "mine", loaded.name)]
        vectors = [http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"] for body in bodies]
        assert vectors[0] == vectors[2] != vectors[1]
        _server(loaded.app, loaded.service).handle_exit(signal.SIGINT, None)
        assert asyncio.run(loaded.service.ask(lambda engine: engine.training.finished))
        assert http.post("/v1/completions", json={"model": "mine", "prompt": "one"}).is_success
        assert not loaded.service.end_training()
    assert figures["lightwork_training_tokens_total"] > 0
    assert figures["lightwork_training_loss"] > 0
    told = capsys.readouterr().err
    assert re.search(r"  trained mine   loss [\d.]+   [\d,]+ tokens   \d+% of the time\n", told)
    assert told.endswith("training ends here; what was trained so far is kept\n")
    assert read_adapter(tmp_path / "mine", loaded.model.spec).rank == 2


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"alpha": 0.0}, {"epochs": 0}, {"learning_rate": float("nan")}]
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RangeError):
        LoraTuning(data="a", out="b", **wrong)


def test_what_cannot_be_trained_is_refused_before_anything_is_served(
    checkpoint: Make, data: Path, tmp_path: Path
) -> None:
    folder = str(checkpoint("llama"))

    def open_with(*use: Any, model: str = folder) -> None:
        open_engine(Plan(model=model, use=use, kv_bytes=1 << 24), Kernel(WallClock()))

    good = {"data": str(data), "out": str(tmp_path / "new")}
    with pytest.raises(SpecError, match="leaves no time for training"):
        open_with(LoraTuning(**good), Sarathi())
    with pytest.raises(SpecError, match="cannot be read"):
        open_with(LoraTuning(data="none.jsonl", out=good["out"]))
    with pytest.raises(SpecError, match="is there already"):
        open_with(LoraTuning(data=good["data"], out=str(tmp_path)))
    with pytest.raises(SpecError, match="cannot be made"):
        open_with(LoraTuning(data=good["data"], out=str(data / "new")))
    write_adapter(tmp_path / "served" / "new", random_adapter(read_shape(folder), "new"), read_shape(folder))
    with pytest.raises(SpecError, match="an adapter called 'new' is served already"):
        open_with(LoraTuning(**good), f"Lora(folder='{tmp_path}/served')")
    with pytest.raises(SpecError, match="are both called 'new'"):
        load(Plan(model=folder, use=(LoraTuning(**good),), kv_bytes=1 << 24), name="new")
    with pytest.raises(SpecError, match="would train the same adapter"):
        open_with(LoraTuning(**good), "Replicas(copies=2)")
    with pytest.raises(SpecError, match="has no tokenizer"):
        simulate(Plan(model="shape:llama-3-8b", on="sim:a100", use=(LoraTuning(**good),)), Poisson())
    with pytest.raises(SpecError, match="is of the compiled CPU step, and sim:a100 is simulated"):
        simulate(Plan(on="sim:a100", use=("Quant(bits=8)",)), Poisson())
    with pytest.raises(RangeError, match="no module is called 'x_proj'"):
        open_with(LoraTuning(**good, modules="q_proj,x_proj"))
