"""Real checkpoints, real torch: however tokens are scheduled, the text is the one of plain decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from lightwork import models
from lightwork.decode.proposers.copy import Copy
from lightwork.decode.proposers.ngram import Ngram
from lightwork.decode.sampling import Pick, Sampling
from lightwork.memory.kv import KVCache
from lightwork.memory.layouts import Layout
from lightwork.memory.layouts.block_groups import BlockGroups
from lightwork.memory.layouts.paged import Paged
from lightwork.memory.layouts.slots import Slots
from lightwork.memory.tiers.host_memory import HostMemory
from lightwork.models.precisions.quant import Quant
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.engine import Engine
from lightwork.serve.fleet import Fleet
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.opening import open_engine, open_one
from lightwork.serve.plan import Plan, kv_blocks, make_engine, make_kv, tier_blocks
from lightwork.serve.replay import decisions, replay
from lightwork.serve.routers.prefill_decode import PrefillDecode
from lightwork.serve.schedulers.fast_switch import FastSwitch
from lightwork.serve.schedulers.flover import Flover
from lightwork.serve.schedulers.prefill_first import PrefillFirst
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load
from lightwork.testing import FAMILIES

Make = Callable[..., Path]


def engine_for(folder: Path, kernel: Kernel | None = None, **plan: object) -> Engine:
    kernel = kernel or Kernel(WallClock(), trace=Trace("real: cpu"))
    return open_engine(Plan(model=str(folder), max_len=200, **plan), kernel)[0]  # type: ignore[arg-type]


def torch_engine_for(folder: Path, kernel: Kernel | None = None, **settings: object) -> Engine:
    """The same, on the torch forward, in blocks of 16."""
    plan = Plan(model=str(folder), max_len=200, **settings)  # type: ignore[arg-type]
    model = models.load(str(folder))
    kernel = kernel or Kernel(WallClock(), trace=Trace("real: torch"))
    blocks = kv_blocks(plan, model.spec, "float32", 200, 1 << 30)
    behind = tier_blocks(plan, model.spec.kv_bytes_per_token("float32") * 16)
    kv = make_kv(plan, int(blocks.value), 16, behind)
    return make_engine(plan, kernel, kv, LocalRunner(kernel, model, kv), 200, model.spec.vocab_size)


def prompts(num: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Prompts of 3 to 40 tokens; half of them share a beginning."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(0, 256, 21).tolist()
    return [
        tuple((shared if i % 2 else []) + rng.integers(0, 256, int(rng.integers(3, 20))).tolist())
        for i in range(num)
    ]


def requests(num: int, max_tokens: int, **sampling: float) -> list[Request]:
    how = Sampling(**{"temperature": 0.0, **sampling})  # type: ignore[arg-type]
    return [Request(prompt=p, max_tokens=max_tokens, sampling=how) for p in prompts(num)]


def texts(engine: Engine, load: list[Request], *, one_by_one: bool = False) -> list[list[int]]:
    if one_by_one:
        return [texts(engine, [request])[0] for request in load]
    seqs = run_load(engine, [0.0] * len(load), load)
    engine.kv.check()
    assert engine.kv.free == engine.kv.total
    return [seq.tokens[seq.prompt_len :] for seq in seqs]


@pytest.fixture(scope="module")
def plain(checkpoint: Make) -> list[list[int]]:
    """64 texts of 64 tokens, one request at a time, nothing shared."""
    engine = engine_for(checkpoint("llama"), prefix_cache=False, use=(PrefillFirst(),))
    return texts(engine, requests(64, 64), one_by_one=True)


WAYS: dict[str, dict[str, object]] = {
    "fused in slots": {"use": (Flover(), Slots(max_seqs=5), Ngram(k=3))},
    "batched": {"use": (PrefillFirst(),), "prefix_cache": False},
    "chunked": {"use": (Sarathi(chunk=31),), "prefix_cache": False},
    "prefix hits": {"use": (Sarathi(),)},
    "preempted": {"use": (Sarathi(chunk=64),), "kv_bytes": 600 * 384},
    "copied": {"use": (Sarathi(chunk=256), Copy(k=6, stop=-1))},
    "drafted": {"use": (Sarathi(chunk=256), Ngram(k=4))},
    "drafted and preempted": {"use": (Sarathi(chunk=128), Ngram(k=6)), "kv_bytes": 900 * 384},
}


@pytest.mark.parametrize("way", WAYS)
def test_greedy_text_does_not_depend_on_the_schedule(
    checkpoint: Make, plain: list[list[int]], way: str
) -> None:
    engine = engine_for(checkpoint("llama"), **WAYS[way])
    load = requests(64, 64)
    if way == "prefix hits":
        assert texts(engine, load[:3]) == plain[:3]
    assert texts(engine, load) == plain
    assert preempted(engine) == ("preempted" in way)


def preempted(engine: Engine) -> bool:
    assert engine.kernel.trace is not None
    return any(span.kind == "preempt" for span in engine.kernel.trace.spans)


@pytest.mark.parametrize("way", WAYS)
def test_torch_gives_the_same_text_however_it_is_scheduled(
    checkpoint: Make, plain: list[list[int]], way: str
) -> None:
    settings = WAYS[way] | ({"kv_bytes": 200 * 384} if "preempted" in way else {})
    engine = torch_engine_for(checkpoint("llama"), **settings)
    right = [text[:20] for text in plain[:12]]
    if way == "prefix hits":
        assert texts(engine, requests(3, 20)) == right[:3]
    assert texts(engine, requests(12, 20)) == right
    assert preempted(engine) == ("preempted" in way)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_family_greedy_and_sampled(checkpoint: Make, family: str, temperature: float) -> None:
    load = requests(6, 24, temperature=temperature, seed=5, top_p=0.95)
    alone = engine_for(checkpoint(family), prefix_cache=False)
    together = engine_for(checkpoint(family), use=(Sarathi(chunk=24), Ngram(k=5)), kv_bytes=40 * 16 * 1200)
    right = texts(alone, load, one_by_one=True)
    assert texts(together, load) == right
    assert texts(torch_engine_for(checkpoint(family)), load) == right


class Picks:
    """Keeps what a sequence was told."""

    def __init__(self) -> None:
        self.picks: list[Pick] = []

    def prompt(self, seq: Seq, picks: Sequence[Pick]) -> None: ...

    def tokens(self, seq: Seq, picks: Sequence[Pick]) -> None:
        self.picks += picks

    def finish(self, seq: Seq, reason: str, error: Exception | None) -> None: ...


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("proposer", [Copy(), Ngram()], ids=repr)
def test_drafts_change_neither_texts_nor_their_logprobs(
    checkpoint: Make, proposer: Copy | Ngram, temperature: float
) -> None:
    """Prompts of which a half is what the model said to the other half; rows cost nothing."""
    folder = checkpoint("llama")
    first = requests(8, 40)
    said = texts(engine_for(folder), first)
    how = Sampling(temperature=temperature, seed=3, logprobs=2)
    load = [
        Request(prompt=(*r.prompt, *text, *r.prompt), max_tokens=40, sampling=how)
        for r, text in zip(first, said, strict=True)
    ]
    told: list[list[list[Pick]]] = []
    accepted = 0
    for use in ((), (proposer,)):
        sinks = [Picks() for _ in load]
        plan, kernel = Plan(model=str(folder), max_len=200, use=use), Kernel(WallClock())
        engine, _, _ = open_one(plan, kernel, predict=lambda step: 1.0)
        seqs = run_load(engine, [0.0] * len(load), load, sinks)
        told.append([sink.picks for sink in sinks])
        accepted += sum(seq.accepted for seq in seqs)
    assert told[0] == told[1]
    assert accepted > 0 or temperature > 0


@pytest.mark.peer
def test_greedy_text_is_that_of_transformers(checkpoint: Make, plain: list[list[int]]) -> None:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("llama")).eval()
    for request, text in list(zip(requests(64, 64), plain, strict=True))[:8]:
        ids = torch.tensor([request.prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=64,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert out[0, len(request.prompt) :].tolist() == text


def test_the_simulated_engine_decides_like_the_real_one(checkpoint: Make) -> None:
    plan = Plan(
        model=str(checkpoint("llama")), max_len=200, use=(Sarathi(chunk=40), Ngram(k=3)), kv_bytes=700 * 384
    )
    kernel = Kernel(WallClock(), trace=Trace("real: cpu"))
    engine, model, _ = open_engine(plan, kernel)
    load = requests(24, 40)
    at_s = np.cumsum(np.random.default_rng(3).exponential(0.001, len(load))).tolist()
    seqs = run_load(engine, at_s, load)
    assert kernel.trace is not None
    again = replay(
        kernel.trace,
        seqs,
        lambda k, runner, kv: make_engine(
            plan,
            k,
            kv,
            runner,
            200,
            model.spec.vocab_size,
            predict=engine.predict,
            forming=lambda drafter: engine.forming,
        ),
        KVCache(engine.kv.total, engine.kv.block_size),
    )
    assert decisions(again) == decisions(kernel.trace)
    assert any(kind == "preempt" for kind, _ in decisions(again))


ENGINES = pytest.mark.parametrize(
    ("make", "use"),
    [(engine_for, ()), (engine_for, (Quant(bits=16, kv_bits=8),)), (torch_engine_for, ())],
    ids=["compiled", "compiled int8", "torch"],
)


@ENGINES
@pytest.mark.parametrize("layout", [Paged(), BlockGroups(size=4)], ids=repr)
def test_swapped_to_host_memory_and_back_the_text_is_the_same(
    checkpoint: Make, make: Callable[..., Engine], use: tuple[object, ...], layout: Layout
) -> None:
    """Room for three or four of sixteen sequences, whose priorities change every other step."""
    folder, load = checkpoint("llama"), requests(16, 60)
    expected = texts(make(folder, use=use), load)
    switching = (FastSwitch(every=2, stay=0.3), HostMemory(gb=0.5), layout)
    blocks = 9 if make is engine_for else 24
    engine = make(folder, use=(*use, *switching), kv_bytes=1 << 20)
    one_block = (1 << 20) // engine.kv.total
    engine = make(folder, use=(*use, *switching), kv_bytes=blocks * one_block)
    seqs = run_load(engine, [0.001 * i for i in range(16)], load)
    assert [seq.tokens[seq.prompt_len :] for seq in seqs] == expected
    assert sum(seq.num_preempted for seq in seqs) > 16
    assert engine.kernel.trace is not None
    assert sum(span.kind == "fetch" for span in engine.kernel.trace.spans) > 8
    engine.kv.check()
    assert engine.kv.free == engine.kv.total


@ENGINES
def test_prompts_computed_elsewhere_are_gone_on_with_exactly(
    checkpoint: Make, make: Callable[..., Engine], use: tuple[object, ...]
) -> None:
    """Two engines of one kernel, keys and values copied between their arenas."""
    folder, load = checkpoint("llama"), requests(12, 20)
    expected = texts(make(folder, use=use, prefix_cache=False), load)
    kernel = Kernel(WallClock(), trace=Trace("real: two engines"))
    fleet = Fleet([make(folder, kernel, use=use, prefix_cache=False) for _ in range(2)], PrefillDecode())
    seqs = run_load(fleet, [0.001 * i for i in range(12)], load)
    assert [seq.tokens[seq.prompt_len :] for seq in seqs] == expected
    assert kernel.trace is not None
    moved = {span.name: span.args for span in kernel.trace.spans if span.kind == "pull"}
    assert moved == {str(seq.id): {"tokens": seq.prompt_len} for seq in seqs}
    for engine in fleet.engines:
        engine.kv.check()
        assert engine.kv.free == engine.kv.total
