"""Twelve experts in one process, memory for four: real checkpoints, real copies, and who routes to them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("numba")

from engines import UnitCost
from misses import lru_misses

from lightwork.claims._errands import UNKNOWN, errands
from lightwork.decode.sampling import Sampling
from lightwork.errors import CapacityError, CheckpointError, RangeError, UsageError
from lightwork.memory.kv import KVCache
from lightwork.memory.residencies.belady import Belady
from lightwork.memory.residents import Residents
from lightwork.models import load, packed
from lightwork.models.precisions.quant import Quant
from lightwork.models.tokenizer import Tokenizer
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.composing import compose
from lightwork.serve.compositions.experts import Experts
from lightwork.serve.engine import Engine
from lightwork.serve.expert_runner import ExpertRunner, copy_simulated
from lightwork.serve.http.main import BackgroundServer
from lightwork.serve.http.main import load as load_server
from lightwork.serve.loads.burst import Burst
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan, make_engine
from lightwork.serve.prompt_router import FILE, read_router
from lightwork.serve.replay import decisions
from lightwork.serve.routers.prefill_decode import PrefillDecode
from lightwork.serve.schedulers.by_model import ByModel
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Request
from lightwork.serve.simulate import run_load, simulate
from lightwork.serve.simulated import open_simulated
from lightwork.serve.simulated_runner import SimulatedRunner
from lightwork.testing import tiny_checkpoint
from lightwork.train.prompt_router import train_router

NAMES = ["", *(f"expert-{i}" for i in range(11))]
"""Twelve models, the one they are served beside included."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("coe")
    return {
        name: tiny_checkpoint(top / "experts" / name if name else top / "own", seed=i)
        for i, name in enumerate(NAMES)
    }


@pytest.fixture(scope="module")
def expert_bytes(folders: dict[str, Path]) -> int:
    _, model, _ = open_engine(Plan(model=str(folders[""])), Kernel(WallClock()))
    model.close()
    return model.nbytes


def requests(num: int, seed: int = 0) -> list[Request]:
    rng = random.Random(seed)
    return [
        Request(
            prompt=tuple(rng.randrange(256) for _ in range(rng.randrange(2, 30))),
            max_tokens=12,
            sampling=Sampling(temperature=0.0),
            model=rng.choice(NAMES),
        )
        for _ in range(num)
    ]


LOAD = requests(48)


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> list[list[int]]:
    """What each expert, run by itself, answers."""
    answers: dict[int, list[int]] = {}
    for name, folder in folders.items():
        engine, model, _ = open_engine(Plan(model=str(folder), max_len=200), Kernel(WallClock()))
        mine = [i for i, r in enumerate(LOAD) if r.model == name]
        asked = [replace(LOAD[i], model="") for i in mine]
        for i, seq in zip(mine, run_load(engine, [0.0] * len(mine), asked), strict=True):
            answers[i] = seq.tokens
        model.close()
    return [answers[i] for i in range(len(LOAD))]


@pytest.fixture
def composed(folders: dict[str, Path], expert_bytes: int) -> Iterator[Callable[..., Engine]]:
    opened = []

    def make(*use: Any, slots: float = 4, **experts: Any) -> Engine:
        gb = slots * expert_bytes / 1e9
        composition = Experts(folder=str(folders["expert-0"].parent), gb=gb, **experts)
        plan = Plan(model=str(folders[""]), max_len=200, use=(composition, *use))
        engine, model, _ = open_engine(plan, Kernel(WallClock(), trace=Trace("real: cpu")))
        opened.append(model)
        return engine

    yield make
    for model in opened:
        model.close()


def residents(engine: Engine) -> Residents:
    assert isinstance(engine.runner, ExpertRunner)
    return engine.runner.residents


def names_of(engine: Engine, kind: str) -> list[str]:
    assert engine.kernel.trace is not None
    return [span.name for span in engine.kernel.trace.spans if span.kind == kind]


def one_by_one(engine: Engine) -> list[list[int]]:
    """Each request after the last one's answer."""
    return [run_load(engine, [0.0], [request])[0].tokens for request in LOAD]


@pytest.mark.parametrize("prefetch", [True, False])
def test_every_answer_is_the_experts_and_copies_are_the_misses(
    composed: Callable[..., Engine], alone: list[list[int]], expert_bytes: int, prefetch: bool
) -> None:
    engine = composed(ByModel(max_steps=5), prefetch=prefetch)
    seqs = run_load(engine, [0.0] * len(LOAD), LOAD)
    assert [seq.tokens for seq in seqs] == alone
    counted, trace = residents(engine), names_of(engine, "switch")
    assert counted.num_slots == 4
    assert counted.nbytes == 4 * expert_bytes <= counted.cap_bytes
    assert counted.copies == len(names_of(engine, "load")) == lru_misses(trace, 4)
    assert counted.uses == len(trace) > 2 * len(NAMES)
    bound = Residents(counted.sizes, counted.cap_bytes, Belady(trace=tuple(trace)))
    for name in trace:
        bound.use(name)
        if name not in bound:
            bound.begin(name)
            bound.end(name, arrived=True)
    assert bound.copies < counted.copies


def test_a_batch_by_expert_needs_fewer_copies_and_answers_the_same(
    composed: Callable[..., Engine], alone: list[list[int]]
) -> None:
    grouped, in_order = composed(), composed()
    assert [seq.tokens for seq in run_load(grouped, [0.0] * len(LOAD), LOAD)] == alone
    assert one_by_one(in_order) == alone
    assert residents(grouped).copies == len(NAMES)
    assert residents(in_order).copies == lru_misses([r.model for r in LOAD], 4) > 2 * len(NAMES)


@pytest.mark.parametrize("use", [(Quant(bits=4),), (Sarathi(chunk=16),)], ids=repr)
def test_other_techniques_go_with_it(
    composed: Callable[..., Engine], folders: dict[str, Path], use: Any
) -> None:
    engine = composed(*use, slots=1.5)
    seqs = run_load(engine, [0.0] * 8, LOAD[:8])
    for seq, request in zip(seqs, LOAD[:8], strict=True):
        own, model, _ = open_engine(
            Plan(model=str(folders[request.model]), max_len=200, use=use), Kernel(WallClock())
        )
        assert run_load(own, [0.0], [replace(request, model="")])[0].tokens == seq.tokens
        model.close()


def test_experts_are_mapped_files_where_they_are_large(
    composed: Callable[..., Engine],
    alone: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(packed, "KEPT_BYTES", 0)
    monkeypatch.setenv("LIGHTWORK_HOME", str(tmp_path))
    engine = composed()
    assert len([*(tmp_path / "packed").glob("*.bin")]) == len(NAMES)
    assert [seq.tokens for seq in run_load(engine, [0.0] * len(LOAD), LOAD)] == alone


def test_torch_copies_tensors(folders: dict[str, Path]) -> None:
    model = load(str(folders[""]))
    kernel = Kernel(WallClock(), trace=Trace("real: torch"))
    use = (Experts(folder=str(folders["expert-0"].parent), gb=4.5 * model.nbytes / 1e9),)
    plan = Plan(model=str(folders[""]), max_len=200, use=use)
    make_runner, told = compose(plan, model, LocalRunner, 1e9, None, "engine")
    assert told.value == "4 of 12 models"
    kv = KVCache(200, 16)
    engine = make_engine(plan, kernel, kv, make_runner(kernel, model, kv), 200, 320, NAMES[1:])
    seqs = run_load(engine, [0.0] * len(LOAD), LOAD)
    assert residents(engine).copies == len(NAMES)
    for name in NAMES[:3]:
        own = load(str(folders[name]))
        kernel = Kernel(WallClock())
        kv = KVCache(200, 16)
        plain = make_engine(Plan(max_len=200), kernel, kv, LocalRunner(kernel, own, kv), 200, 320)
        mine = [seq for seq in seqs if seq.request.model == name]
        asked = [replace(seq.request, model="") for seq in mine]
        assert [s.tokens for s in run_load(plain, [0.0] * len(mine), asked)] == [s.tokens for s in mine]


@pytest.mark.multiproc
def test_engines_behind_a_router_each_have_their_experts(composed: Callable[..., Engine]) -> None:
    asked = LOAD[:16]
    alone, apart = (
        run_load(composed(*use, slots=2), [0.0] * len(asked), asked) for use in ((), (PrefillDecode(),))
    )
    assert [seq.tokens for seq in apart] == [seq.tokens for seq in alone]


def test_what_does_not_fit_or_is_not_an_expert_is_refused_by_name(
    composed: Callable[..., Engine], folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(CapacityError, match="'expert-9' takes"):
        composed(slots=0.9)
    with pytest.raises(CheckpointError, match="holds no experts"):
        Experts(folder=str(tmp_path)).folders()
    with pytest.raises(RangeError, match="gb=0"):
        Experts(gb=0)
    with pytest.raises(RangeError, match="num=0"):
        Experts(num=0)
    tiny_checkpoint(tmp_path / "odd", hidden_size=64)
    plan = Plan(model=str(folders[""]), use=(Experts(folder=str(tmp_path), gb=1.0),))
    with pytest.raises(CheckpointError, match="expert 'odd' has another config"):
        open_engine(plan, Kernel(WallClock()))


# -- simulated


def test_real_and_simulated_decide_and_copy_alike(composed: Callable[..., Engine]) -> None:
    real = composed(ByModel(max_steps=5))
    seqs = run_load(real, [0.0] * len(LOAD), LOAD)
    texts = {seq.id: seq.tokens for seq in seqs}
    kernel = Kernel(trace=Trace("simulated"))
    counted = residents(real)
    places = Residents(counted.sizes, counted.cap_bytes, counted.policy)
    plain = SimulatedRunner(UnitCost(), script=lambda seq, position: texts[seq.id][position])
    runner = ExpertRunner(kernel, plain, places, copy_simulated(lambda name: 0.001))
    kv = KVCache(real.kv.total, real.kv.block_size)
    twin = Engine(kernel, runner, kv, real.scheduler, limits=real.limits)
    run_load(twin, [0.0] * len(LOAD), LOAD)
    assert real.kernel.trace is not None
    assert kernel.trace is not None
    assert decisions(kernel.trace) == decisions(real.kernel.trace)
    for kind in ("switch", "load"):
        assert names_of(twin, kind) == names_of(real, kind)


def test_a_copy_takes_its_bytes_through_the_host_memory_of_a_place() -> None:
    use = (Experts(num=5, prefetch=False, gb=3 * 13.5),)
    plan = Plan(model="shape:llama-2-7b", on="sim:sn40lx8", use=use)
    kernel = Kernel(trace=Trace("simulated"))
    engine, settings = open_simulated(plan, kernel)
    assert isinstance(engine, Engine)
    assert ("residents", "3 of 6 models") in [setting[:2] for setting in settings]
    names = ["expert 1", "expert 2", "expert 1", "", "expert 5"]
    for name in names:
        run_load(engine, [0.0], [Request(prompt=(1, 2, 3), max_tokens=2, model=name)])
    assert kernel.trace is not None
    loads = [span for span in kernel.trace.spans if span.kind == "load"]
    assert [span.name for span in loads] == ["expert 1", "expert 2", "", "expert 5"]
    for span in loads:
        assert span.args is not None
        assert span.args["bytes"] == pytest.approx(13.48e9, rel=0.001)
        assert span.end_s - span.start_s == pytest.approx(13.48e9 / 1e12, rel=0.01)
    with pytest.raises(RangeError, match="no model is called 'expert 6'"):
        engine.submit(Request(prompt=(1,), max_tokens=1, model="expert 6"))


def test_more_experts_than_host_memory_holds_are_refused() -> None:
    for num, fits in ((147, True), (148, False)):
        plan = Plan(model="shape:llama-2-7b", on="sim:dgx_a100x8", use=(Experts(num=num),))
        if fits:
            open_simulated(plan, Kernel())
        else:
            with pytest.raises(CapacityError, match="149 models take 2008 GB"):
                open_simulated(plan, Kernel())


def test_more_memory_than_a_place_has_is_refused() -> None:
    plan = Plan(model="shape:llama-2-7b", on="sim:sn40lx8", use=(Experts(num=5, gb=500.0),), kv_bytes=1 << 30)
    with pytest.raises(CapacityError, match="gb=500"):
        open_simulated(plan, Kernel())


def test_a_load_that_names_none_is_of_the_model_itself() -> None:
    plan = Plan(model="shape:llama-2-7b", on="sim:sn40lx8", use=(Experts(num=5),))
    outcome = simulate(plan, Burst(num_requests=4))
    assert [span.name for span in outcome.trace.spans if span.kind == "load"] == [""]
    assert outcome.summary.num_requests == 4


# -- who chooses


class Bytes:
    """A tokenizer."""

    @staticmethod
    def encode(text: str) -> list[int]:
        return [*text.encode()]


def encoded(prompts: Any, tokenizer: Any = Bytes) -> dict[str, list[list[int]]]:
    return {name: [tokenizer.encode(text) for text in texts] for name, texts in prompts.items()}


def test_a_router_is_trained_and_read_again(tmp_path: Path) -> None:
    """On ways of saying it that it was not trained on; no single word decides (see `_errands`)."""
    router = train_router(encoded(errands(60, seed=0, new=False)))
    tried = [(name, p) for name, ps in encoded(errands(10, seed=1, new=True)).items() for p in ps]
    chosen = [router.route(prompt) for _, prompt in tried]
    assert np.mean([name == found for (name, _), found in zip(tried, chosen, strict=True)]) > 0.75
    assert np.mean([found not in ("", name) for (name, _), found in zip(tried, chosen, strict=True)]) < 0.1
    assert {router.route(Bytes.encode(text)) for text in UNKNOWN} == {""}
    assert router.route(()) == router.route((3,)) == ""
    for name in router.names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    router.save(tmp_path)
    again = read_router(tmp_path)
    assert again is not None
    assert [again.route(prompt) for _, prompt in tried] == chosen


def test_a_router_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="so few prompts"):
        train_router({"a": [[1]] * 20, "b": [[2]]})
    assert read_router(tmp_path) is None
    train_router({"a": [[1, 2]] * 20, "b": [[3, 4]] * 20}).save(tmp_path)
    with pytest.raises(CheckpointError, match="names the expert 'a', which is not in"):
        read_router(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    for damaged in (whole[:100], b"", b"x" * 100):
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is no router"):
            read_router(tmp_path)


def test_over_http_experts_are_asked_by_name_or_by_the_router(
    folders: dict[str, Path], expert_bytes: int, tmp_path: Path
) -> None:
    for name in ("expert-0", "expert-1", "expert-2"):
        shutil.copytree(folders[name], tmp_path / name)
    tokenizer = Tokenizer(folders[""])
    sorts = [*errands(40, seed=0, new=False).items()][:3]
    train_router(encoded({f"expert-{i}": texts for i, (_, texts) in enumerate(sorts)}, tokenizer)).save(
        tmp_path
    )
    plan = Plan(
        model=str(folders[""]), use=(Experts(folder=str(tmp_path), gb=2 * expert_bytes / 1e9),), max_len=400
    )
    prompts = [texts[0] for _, texts in sorts] + [UNKNOWN[0]]

    def answers(http: httpx.Client, prompt: str, model: str) -> str:
        body = {"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0}
        reply = http.post("/v1/completions", json=body).raise_for_status().json()
        assert reply["model"] == model
        return str(reply["choices"][0]["text"])

    with (
        BackgroundServer(load_server(plan, name="coe")) as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        listed = {model["id"] for model in http.get("/v1/models").json()["data"]}
        assert listed == {"coe", "expert-0", "expert-1", "expert-2"}
        by_name = [[answers(http, p, f"expert-{i}") for i in range(3)] for p in prompts]
        routed = [answers(http, prompt, "coe") for prompt in prompts]
    assert routed[:3] == [by_name[i][i] for i in range(3)]
    assert len({*by_name[0]}) == 3
    own, model, _ = open_engine(Plan(model=str(folders[""]), max_len=400), Kernel(WallClock()))
    asked = Request(
        prompt=tuple(tokenizer.encode(prompts[3])), max_tokens=8, sampling=Sampling(temperature=0.0)
    )
    (seq,) = run_load(own, [0.0], [asked])
    assert routed[3] == tokenizer.decode(seq.tokens[seq.prompt_len :])
    model.close()
