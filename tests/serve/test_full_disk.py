"""A disk without room while something is written: requests go on, the file is named, nothing of it is left.

The room is a limit on the size of files of this process and those that it starts, which anybody may set.
"""

from __future__ import annotations

import json
import logging
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("httpx")
pytest.importorskip("numba")
pytest.importorskip("torch")

from lightwork.claims.results import save
from lightwork.cli._chat import Chat
from lightwork.cli._server import Server
from lightwork.errors import CheckpointError, LightworkError
from lightwork.home import home
from lightwork.models.gguf.export import write_gguf
from lightwork.models.peft import read_adapter
from lightwork.models.spec import read_spec
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.perfetto import read_chrome_trace, write_chrome_trace
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.loads import Arrival
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan, about
from lightwork.serve.run_folder import Recorder, read_run
from lightwork.serve.schedulers.co_serve import CoServe
from lightwork.serve.sequence import Request
from lightwork.serve.simulate import offer, run_load
from lightwork.serve.simulated import open_simulated
from lightwork.train.export import save_model
from lightwork.train.initial import initial_weights
from lightwork.train.tunings.lora_tuning import LoraTuning
from lightwork.train.vocabulary import build_tokenizer

Make = Callable[..., Path]
LOAD = [Request(prompt=tuple(range(10 + i, 40 + 3 * i)), max_tokens=24) for i in range(8)]


@contextmanager
def room(nbytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_record_that_has_no_room_ends_and_the_run_does_not(tmp_path: Path) -> None:
    plan = Plan(model="shape:llama-3-8b", on="sim:a100", tp=1)
    kernel = Kernel(trace=Trace("simulated"))
    engine, _ = open_simulated(plan, kernel)
    assert kernel.trace is not None
    kernel.trace.about = about(plan)
    recorder = Recorder(tmp_path / "run", engine, kernel.trace)
    with room(8000):
        offer(engine, [Arrival(0.0, 300, 40)] * 8, [replace(LOAD[0], max_tokens=40)] * 8, recorder)
    assert sum(span.kind == "finish" for span in kernel.trace.spans) == 8
    with pytest.raises(LightworkError, match=r"events\.jsonl cannot be written"):
        recorder.close()
    assert 0 < len(read_run(tmp_path / "run").trace.spans) < len(kernel.trace.spans)


def served(plan: Plan) -> list[list[int]]:
    engine, model, _ = open_engine(plan, Kernel(WallClock()))
    try:
        seqs = run_load(engine, [0.0] * len(LOAD), LOAD)
    finally:
        model.close()
    assert {seq.finished for seq in seqs} == {"length"}
    return [seq.tokens[seq.prompt_len :] for seq in seqs]


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("*") if file.is_file())


@pytest.mark.multiproc
def test_engines_that_cannot_keep_converted_weights_serve_without(
    checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each converts for itself; the next start, with room, keeps a whole file."""
    folder = str(checkpoint("llama", hidden_size=256, intermediate_size=512))
    (tmp_path / "code").symlink_to(home() / "code")
    monkeypatch.setenv("LIGHTWORK_HOME", str(tmp_path))
    plan = Plan(model=folder, use=("Replicas(copies=2)",), max_len=256, kv_bytes=1 << 20)
    with room(2 << 20):
        without = served(plan)
    told = capfd.readouterr().err
    assert f"packed weights cannot be kept in {tmp_path}/packed: File too large" in told
    assert "set LIGHTWORK_HOME to a folder with room" in told
    assert [*(tmp_path / "packed").iterdir()] == []
    assert served(plan) == without
    assert "cannot be kept" not in capfd.readouterr().err
    (kept,) = (tmp_path / "packed").iterdir()
    assert kept.stat().st_size > 2 << 20


def test_training_that_cannot_write_its_adapter_stops_alone(
    checkpoint: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, data, out = str(checkpoint("llama")), tmp_path / "examples.jsonl", tmp_path / "mine"
    data.write_text("".join(json.dumps({"text": f"the number {i}"}) + "\n" for i in range(8)))
    expected = served(Plan(model=folder, max_len=256, kv_bytes=1 << 20))
    tuning = LoraTuning(data=str(data), out=str(out), rank=4, epochs=2)
    kernel = Kernel(WallClock(), trace=Trace("test"))
    plan = Plan(model=folder, use=(tuning, CoServe(slo_s=0.2)), max_len=256, kv_bytes=1 << 20)
    engine, model, _ = open_engine(plan, kernel)
    assert kernel.trace is not None
    serving = kernel.spawn(engine.run(), name="engine")
    with room(1000), caplog.at_level(logging.ERROR):
        while not any(span.kind == "training failed" for span in kernel.trace.spans):
            kernel.run(until_s=kernel.now() + 0.05)
    serving.cancel()
    assert f"training has stopped: {out}/adapter_model.safetensors cannot be written: File too" in caplog.text
    assert "make room there" in caplog.text
    seqs = run_load(engine, [0.0] * len(LOAD), LOAD)
    model.close()
    assert [seq.tokens[seq.prompt_len :] for seq in seqs] == expected
    assert files(out) == []
    with pytest.raises(CheckpointError):
        read_adapter(out, model.spec)


def test_a_trace_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    before, trace, file = Trace("before"), Trace("after"), tmp_path / "trace.json"
    write_chrome_trace(file, [before])
    (tmp_path / "trace.some.part").touch()  # somebody else's
    for i in range(100):
        trace.add(Span("engine", "step", f"step {i}", float(i), i + 0.5))
    with room(1000):
        for path in (file, tmp_path / "new.json"):
            with pytest.raises(
                LightworkError, match=f"{path.name} cannot be written: File too large"
            ) as told:
                write_chrome_trace(path, [trace])
            assert told.value.fix == "make room there, or name another place"
    assert files(tmp_path) == ["trace.json", "trace.some.part"]
    write_chrome_trace(file, [trace])
    assert len(read_chrome_trace(file)[0].spans) == 100


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs Linux")
def test_a_device_that_is_full_is_named_and_stays_a_device() -> None:
    with pytest.raises(LightworkError, match="/dev/full cannot be written: No space left on device"):
        write_chrome_trace("/dev/full", [Trace("test")])
    assert Path("/dev/full").is_char_device()


def test_what_is_saved_again_without_room_stays_as_it_was(checkpoint: Make, tmp_path: Path) -> None:
    """A model's folder, a GGUF file, a conversation, verdicts of claims."""
    export, gguf = tmp_path / "trained", tmp_path / "model.gguf"
    spec, tokenizer = read_spec(checkpoint("llama")), build_tokenizer([], [])
    spec = replace(spec, vocab_size=tokenizer.get_vocab_size())
    chat = Chat(Server("tiny:llama"))
    chat.messages.append({"role": "user", "content": "a long story " * 1000})
    saves: list[tuple[Path, Callable[[Path], object]]] = [
        (export, lambda path: save_model(path, initial_weights(spec, seed=0), spec, tokenizer)),
        (gguf, lambda path: write_gguf(checkpoint("llama"), path, "f32")),
        (tmp_path / "chat.json", chat.save),
        (tmp_path / "results.json", lambda path: save({}, {"cpu": "x" * 2000}, path)),
    ]
    for path, write in saves:
        write(path)
        before = {file: file.read_bytes() for file in [path, *path.rglob("*")] if file.is_file()}
        new = path.with_name(f"new-{path.name}")
        for place in (path, new):
            with (
                room(400),
                pytest.raises(LightworkError, match=r"cannot be written: .*File too large") as told,
            ):
                write(place)
            assert told.value.fix == "make room there, or name another place"
        assert {file: file.read_bytes() for file in before} == before
        assert not new.is_file()
    assert not [*tmp_path.rglob("*.part")]
