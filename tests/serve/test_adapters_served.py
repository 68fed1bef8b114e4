"""Adapters in serving: each request its own, in one batch, and none of another's keys and values."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from lightwork import models
from lightwork.decode.proposers.ngram import Ngram
from lightwork.decode.sampling import Pick, Sampling
from lightwork.errors import CheckpointError, LightworkError, SpecError
from lightwork.memory.tiers.host_memory import HostMemory
from lightwork.models.adapters import Adapter
from lightwork.models.adapters.lora import Lora
from lightwork.models.peft import write_adapter
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.adapters import put_adapter
from lightwork.serve.engine import Engine
from lightwork.serve.http.main import BackgroundServer, load
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan, kv_blocks, make_engine, make_kv
from lightwork.serve.schedulers.fast_switch import FastSwitch
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load
from lightwork.testing import random_adapter

Make = Callable[..., Path]
NAMES = ("one", "two", "three")
ASKED = ("", "one@1", "two@1", "three@1")


@pytest.fixture(scope="module")
def folder(checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three adapters of the tiny Llama."""
    made = tmp_path_factory.mktemp("adapters")
    spec = models.read_shape(str(checkpoint("llama")))
    for i, name in enumerate(NAMES):
        write_adapter(made / name, random_adapter(spec, name, i, rank=3 + i), spec)
    return made


def opened(checkpoint: Make, folder: Path, *use: Any, **settings: Any) -> tuple[Engine, Any]:
    kernel = Kernel(WallClock(), trace=Trace("real: cpu"))
    plan = Plan(model=str(checkpoint("llama")), max_len=200, use=(Lora(folder=str(folder)), *use), **settings)
    engine, model, _ = open_engine(plan, kernel)
    assert isinstance(engine, Engine)
    return engine, model


def opened_on_torch(checkpoint: Make, folder: Path, *use: Any, **settings: Any) -> tuple[Engine, Any]:
    """The same on the torch forward, in blocks of 16."""
    plan = Plan(model=str(checkpoint("llama")), max_len=200, use=use, **settings)
    model = models.load(str(checkpoint("llama")))
    for adapter in Lora(folder=str(folder)).read(model.spec):
        model.adapters.put(adapter)
    kernel = Kernel(WallClock(), trace=Trace("real: torch"))
    blocks = kv_blocks(plan, model.spec, "float32", 200, 1 << 30)
    kv = make_kv(plan, int(blocks.value), 16, 0)
    engine = make_engine(
        plan,
        kernel,
        kv,
        LocalRunner(kernel, model, kv),
        200,
        model.spec.vocab_size,
        model.adapters,
    )
    return engine, model


def requests(num: int, max_tokens: int = 24, *, shared: int = 105) -> list[Request]:
    """Every model is asked in turn; all prompts begin alike, with more than a block."""
    rng = np.random.default_rng(0)
    beginning = rng.integers(0, 256, shared).tolist()
    return [
        Request(
            prompt=(*beginning, *rng.integers(0, 256, 3 + i).tolist()),
            max_tokens=max_tokens,
            sampling=Sampling(temperature=0.0),
            model=ASKED[i % len(ASKED)],
        )
        for i in range(num)
    ]


def texts(engine: Engine, load: Sequence[Request]) -> list[list[int]]:
    seqs = run_load(engine, [0.0] * len(load), load)
    engine.kv.check()
    assert engine.kv.free == engine.kv.total
    return [seq.tokens[seq.prompt_len :] for seq in seqs]


def preempted(engine: Engine) -> bool:
    assert engine.kernel.trace is not None
    return any(span.kind == "preempt" for span in engine.kernel.trace.spans)


@pytest.fixture(scope="module")
def alone(checkpoint: Make, folder: Path) -> list[list[int]]:
    """Each request by itself, on a server that has its adapter only, with nothing shared."""
    found = []
    for request in requests(16):
        engine, model = opened(checkpoint, folder, prefix_cache=False)
        found += texts(engine, [request])
        model.close()
    return found


WAYS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "batched": ((), {"prefix_cache": False}),
    "chunked": ((Sarathi(chunk=17),), {"prefix_cache": False}),
    "prefix hits": ((), {}),
    "preempted": ((Sarathi(chunk=64),), {"kv_bytes": 700 * 384}),
    "drafted": ((Ngram(k=4),), {}),
    "drafted and preempted": ((Sarathi(chunk=128), Ngram(k=6)), {"kv_bytes": 900 * 384}),
    "swapped": ((FastSwitch(every=2, stay=0.3), HostMemory(gb=0.5)), {"kv_bytes": 700 * 384}),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_text_is_the_one_that_the_adapter_gives_alone(
    checkpoint: Make, folder: Path, alone: list[list[int]], way: str
) -> None:
    use, settings = WAYS[way]
    engine, model = opened(checkpoint, folder, *use, **settings)
    load = requests(16)
    assert texts(engine, load) == alone
    assert texts(engine, load) == alone  # now with what the cache holds
    assert preempted(engine) == ("preempted" in way or way == "swapped")
    assert engine.kernel.trace is not None
    together = {len(s.args["chunks"]) for s in engine.kernel.trace.spans if s.kind == "step" and s.args}
    assert max(together) >= 4
    model.close()


@pytest.mark.parametrize("way", ["batched", "chunked", "prefix hits", "drafted"])
def test_torch_gives_the_same_texts(checkpoint: Make, folder: Path, alone: list[list[int]], way: str) -> None:
    use, settings = WAYS[way]
    engine, _ = opened_on_torch(checkpoint, folder, *use, **settings)
    assert texts(engine, requests(16)) == alone


def test_requests_without_an_adapter_do_not_notice_that_there_are_some(
    checkpoint: Make, folder: Path, alone: list[list[int]]
) -> None:
    kernel = Kernel(WallClock())
    engine, model, _ = open_engine(Plan(model=str(checkpoint("llama")), max_len=200), kernel)
    assert isinstance(engine, Engine)
    assert texts(engine, requests(16)[::4]) == alone[::4]
    assert len({tuple(text) for text in alone[:4]}) == 4
    model.close()


def test_prefixes_are_shared_within_an_adapter_and_never_between_two(checkpoint: Make, folder: Path) -> None:
    engine, model = opened(checkpoint, folder)
    first = run_load(engine, [0.0] * 4, requests(4))
    assert [seq.cached for seq in first] == [0] * 4
    again = run_load(engine, [0.0] * 4, [replace(r, prompt=(*r.prompt, 7)) for r in requests(4)])
    assert all(seq.cached >= 64 for seq in again)
    engine.submit(replace(requests(4)[1], model=""))
    with pytest.raises(LightworkError, match="four@1"):
        engine.submit(replace(requests(1)[0], model="four@1"))
    model.close()


# -- replaced while it is served


class AtThird:
    """A sink that does something when its third token comes, in the midst of its sequence."""

    def __init__(self, do: Callable[[], object]) -> None:
        self._do = do
        self._num_tokens = 0

    def prompt(self, seq: Seq, picks: Sequence[Pick]) -> None: ...
    def finish(self, seq: Seq, reason: str, error: Exception | None) -> None: ...

    def tokens(self, seq: Seq, picks: Sequence[Pick]) -> None:
        self._num_tokens += len(picks)
        if self._num_tokens == 3:
            self._do()


OPEN = pytest.mark.parametrize("open_one", [opened, opened_on_torch], ids=["compiled", "torch"])


@OPEN
def test_sequences_go_on_with_the_version_that_they_began_with(
    checkpoint: Make, folder: Path, alone: list[list[int]], open_one: Callable[..., tuple[Engine, Any]]
) -> None:
    engine, model = open_one(checkpoint, folder)
    newer = random_adapter(model.spec, "one", 99)
    old = requests(8)[1]
    sink = AtThird(lambda: model.adapters.put(newer, {"one@1"}))
    (seq,) = run_load(engine, [0.0], [old], sinks=[sink])
    assert seq.tokens[seq.prompt_len :] == alone[1]
    assert model.variants["one"] == "one@2"
    (after,) = texts(engine, [replace(old, model="one@2")])
    assert after != alone[1]
    # The prompt is in the cache as the old version computed it, and none of that was found.
    other_engine, other = open_one(checkpoint, folder)
    other.adapters.put(newer)
    assert texts(other_engine, [replace(old, model="one@2")]) == [after]
    for one in (model, other):
        one.close()


@OPEN
def test_versions_stay_while_a_request_waits_for_them(
    checkpoint: Make, folder: Path, alone: list[list[int]], open_one: Callable[..., tuple[Engine, Any]]
) -> None:
    engine, model = open_one(checkpoint, folder)
    newer = random_adapter(model.spec, "one", 99)
    (waiting,) = engine.submit(requests(8)[1])
    for number in range(2, 12):
        assert engine.kernel.run(put_adapter(engine, model, newer)) == f"one@{number}"
    assert [v for v in model.adapters if v.startswith("one@")] == ["one@1", "one@10", "one@11"]
    texts(engine, [])
    assert waiting.tokens[waiting.prompt_len :] == alone[1]
    engine.kernel.run(put_adapter(engine, model, newer))
    assert [v for v in model.adapters if v.startswith("one@")] == ["one@11", "one@12"]
    with pytest.raises(LightworkError, match="one@1'"):
        engine.submit(requests(8)[1])
    with pytest.raises(CheckpointError, match="finite"):
        engine.kernel.run(put_adapter(engine, model, _damaged(newer)))
    assert model.variants["one"] == "one@12"
    model.close()


def _damaged(adapter: Adapter) -> Adapter:
    path, delta = next(iter(adapter.deltas.items()))
    return replace(adapter, deltas={**adapter.deltas, path: replace(delta, scale=float("inf"))})


# -- over HTTP, and in several processes


def test_adapters_are_asked_for_by_name_over_http(
    checkpoint: Make, folder: Path, alone: list[list[int]]
) -> None:
    plan = Plan(model=str(checkpoint("llama")), max_len=200, use=(f"Lora(folder='{folder}')",))
    loaded = load(plan, name="tiny")
    setting = next(s for s in loaded.settings if s.name == "adapters")
    assert all(f"{name} (" in setting.value and "MB" in setting.value for name in NAMES)
    with BackgroundServer(loaded) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert [m.id for m in client.models.list()] == ["tiny", "one", "three", "two"]

        def ask(i: int) -> None:
            request = requests(16)[i]
            name = request.model.partition("@")[0] or "tiny"
            answer = client.completions.create(
                model=name,
                prompt=[*request.prompt],
                max_tokens=24,
                temperature=0,
                extra_body={"ignore_eos": True},
            )
            assert answer.model == name
            got[i] = answer.choices[0].text

        got: dict[int, str] = {}
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        decode = loaded.model.tokenizer.decode
        assert [got[i] for i in range(16)] == [decode(text) for text in alone]
        refused = httpx.post(f"{url}/v1/completions", json={"model": "four", "prompt": "a"})
        assert refused.status_code == 404
        client.close()
    loaded.close()


def test_a_model_and_an_adapter_of_one_name_are_refused(checkpoint: Make, folder: Path) -> None:
    plan = Plan(model=str(checkpoint("llama")), max_len=200, use=(Lora(folder=str(folder)),))
    with pytest.raises(SpecError, match="'two'"):
        load(plan, name="two")


@pytest.mark.multiproc
@pytest.mark.parametrize("router", ["Replicas(copies=2)", "PrefillDecode()"])
def test_processes_serve_them_alike(
    checkpoint: Make, folder: Path, alone: list[list[int]], router: str
) -> None:
    kernel = Kernel(WallClock(), trace=Trace("real: processes"))
    use = (Lora(folder=str(folder)), router)
    fleet, model, settings = open_engine(Plan(model=str(checkpoint("llama")), max_len=200, use=use), kernel)
    try:
        assert model.variants == {name: f"{name}@1" for name in NAMES}
        assert [s.name for s in settings].count("adapters") == 1
        load = requests(16)
        seqs = run_load(fleet, [0.0] * len(load), load)
        assert [seq.tokens[seq.prompt_len :] for seq in seqs] == alone
        with pytest.raises(LightworkError, match="four"):
            fleet.submit(replace(load[0], model="four@1"))
    finally:
        model.close()
