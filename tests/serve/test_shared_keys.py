"""Keys that sequences share: priced once where kernels read them once, as the compiled step plans it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from math import inf
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.cluster import parse_place
from lightwork.cluster.calibration import Calibration, Piece, fit
from lightwork.memory.kv import KVCache
from lightwork.models.presets import preset
from lightwork.models.work import forward_work
from lightwork.plan.why import Record
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.cost import CalibratedCost
from lightwork.serve.engine import Engine
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.loads import Arrival
from lightwork.serve.loads.documents import Documents
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan, make_engine
from lightwork.serve.replay import decisions, replay, samples
from lightwork.serve.rows import build_rows
from lightwork.serve.schedulers import Chunk, Step
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.shared_keys import _cuts, shared_keys
from lightwork.serve.simulate import SyntheticRequests, run_load, simulate
from lightwork.serve.simulated_runner import SimulatedRunner


def decodes(kv: KVCache, texts: Sequence[Sequence[int]]) -> Step:
    """The step after texts whose keys and values are there."""
    chunks = []
    for i, text in enumerate(texts):
        tokens = [*text, 1]
        done = kv.attach(i, tokens)
        assert kv.reserve(i, len(tokens)) == [] or done
        kv.commit(i, tokens, len(text))
        request = Request(prompt=tuple(tokens), max_tokens=8)
        chunks.append(Chunk(Seq(i, request, request.sampling, None, 0.0, tokens, len(tokens)), len(text), 1))
    return Step(chunks=chunks)


LONG, OTHER = list(range(1000)), [7] * 600
TEXTS = [[*LONG, 3], [*OTHER, 5], LONG[:700] + [0] * 40, [*LONG, 8, 8], [9] * 300, [*OTHER, 6], LONG[:200]]
"""Two with three chunks of 256, one more with two of them, two with two others, and two that share none."""


def test_whole_chunks_are_read_once() -> None:
    kv = KVCache(200, 64)
    shared = shared_keys(decodes(kv, TEXTS), kv)
    assert sorted(shared) == [0, 0, 0, 0, 512, 512, 512]


@given(alike=st.lists(st.integers(0, 4), min_size=1, max_size=9))
def test_groups_save_the_most(alike: list[int]) -> None:
    def saved(cuts: Sequence[int]) -> int:
        return sum((b - a - 1) * min(alike[a : b - 1], default=0) for a, b in pairwise(cuts))

    inner = range(1, len(alike) + 1)
    every = (c for n in range(len(alike) + 1) for c in combinations(inner, n))
    assert saved(_cuts(alike)) == max(saved([0, *cuts, len(alike) + 1]) for cuts in every)


def load_compiled(checkpoint: Callable[..., Path]) -> Any:
    pytest.importorskip("numba")
    from lightwork import models
    from lightwork.models.precisions.stored import Stored

    return models.load_compiled(str(checkpoint("llama", max_position_embeddings=2048)), precision=Stored())


def test_the_compiled_step_saves_the_same(checkpoint: Callable[..., Path]) -> None:
    kv, model = KVCache(200, 64), load_compiled(checkpoint)
    step = decodes(kv, TEXTS)
    model.logits(build_rows(step, kv)[0], pool := model.new_kv(200, 64))
    assert sorted(model.shared_keys) == sorted(shared_keys(step, kv))
    model.logits(build_rows(Step(chunks=step.chunks[:1]), kv)[0], pool)
    assert model.shared_keys == [0]
    for seed in range(8):
        kv, step = some_tree(Random(seed))
        model.logits(build_rows(step, kv)[0], model.new_kv(kv.total, 64))
        assert sum(model.shared_keys) == sum(shared_keys(step, kv)) > 0
    model.close()


def some_tree(rng: Random) -> tuple[KVCache, Step]:
    """The next tokens of a dozen texts, each with some of four parts of a text before it, in their order."""
    kv, text = KVCache(400, 64), [[n] * 256 for n in range(4)]
    texts = [
        [*(token for part in text[: rng.randint(0, 4)] for token in part), *[9 + i] * rng.randint(1, 500)]
        for i in range(12)
    ]
    return kv, decodes(kv, texts)


def test_a_step_in_parts_shares_what_sequences_of_a_part_do(checkpoint: Callable[..., Path]) -> None:
    """600 rows are computed as 384 and 216: the second sequence has rows in both."""
    kv, model = KVCache(200, 64), load_compiled(checkpoint)
    step = decodes(kv, [[7] * 1000 + [1], [7] * 1000 + [2]])
    for i, (seq, _, _) in enumerate(step.chunks):
        seq.tokens += [i] * 299
        assert kv.reserve(seq.id, len(seq.tokens)) is not None
        step.chunks[i] = Chunk(seq, 960, len(seq.tokens) - 960)
    model.logits(build_rows(step, kv)[0], model.new_kv(200, 64))
    model.close()
    assert sorted(model.shared_keys) == sorted(shared_keys(step, kv)) == [0, 768]


def attention_bytes(chunks: list[tuple[int, int]], shared: Sequence[int] = (), window: int = 0) -> float:
    spec = preset("mistral-7b")
    spec = replace(spec, sliding_window=window or None, windowed=frozenset(range(4) if window else ()))
    work = forward_work(spec, chunks, 0, dtype="bfloat16", shared=shared)
    return sum(w.bytes for w in work if w.kind == "attention")


def test_work_counts_shared_keys_once() -> None:
    alone = attention_bytes([(1000, 1)])
    assert attention_bytes([(1000, 1), (1000, 1)]) == 2 * alone
    both = attention_bytes([(1000, 1), (1000, 1)], [0, 768])
    assert both / alone == pytest.approx(1 + (1001 - 768) / 1001)
    prompt = attention_bytes([(1000, 1), (1000, 100)], [0, 768])
    assert prompt == pytest.approx(alone + attention_bytes([(1100 - 768 - 1, 1)]))


def test_keys_behind_a_window_are_not_shared_again() -> None:
    two, spec = [(1000, 1), (1000, 1)], preset("mistral-7b")
    saved = attention_bytes(two, window=500) - attention_bytes(two, [0, 768], window=500)
    keys = (spec.num_layers - 4) * 768 + 4 * (768 - 500)
    assert saved == pytest.approx(keys * spec.kv_bytes_per_token("bfloat16") / spec.num_layers)


QUESTIONS = Documents(
    num_documents=1,
    degree=16,
    document=2048,
    lengths=Lognormal(prompt=20, output=64, prompt_sigma=0.1, output_sigma=0.1),
)


def test_a_device_that_reads_keys_once_takes_the_same_steps_and_less_time(tmp_path: Path) -> None:
    """A billion parameters, so that what a step costs beside them is small."""
    shape = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "vocab_size": 32_000}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096}
    config = {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, **shape, **heads}
    (tmp_path / "config.json").write_text(json.dumps(config))
    cpu = parse_place("sim:cpu")
    device = replace(cpu.device, unit=replace(cpu.device.unit, reads_once=False))
    (tmp_path / "cpu.json").write_text(json.dumps(replace(cpu, device=device).to_dict()))
    once, each = (
        simulate(Plan(model=str(tmp_path), on=on), QUESTIONS).summary
        for on in ("sim:cpu", f"sim:{tmp_path / 'cpu.json'}")
    )
    assert once.steps == each.steps
    assert once.tbt_p50_s < 0.8 * each.tbt_p50_s


CHUNKED = (Sarathi(chunk=256),)
"""Steps of one part."""


class Served(NamedTuple):
    """A load that was served for real. asked: which texts have the document before them."""

    trace: Trace
    seqs: list[Seq]
    asked: list[bool]
    engine: Engine


@pytest.fixture(scope="module")
def served(checkpoint: Callable[..., Path]) -> Served:
    """A document of 600 tokens, read once; then eight questions about it, and four texts of their own."""
    pytest.importorskip("numba")
    plan = Plan(model=str(checkpoint("llama", max_position_embeddings=2048)), max_len=1024, use=CHUNKED)
    kernel = Kernel(WallClock(), trace=(trace := Trace("real: cpu")))
    engine, model, _ = open_engine(plan, kernel)
    assert isinstance(engine, Engine)
    asked = [True, *(i % 3 > 0 for i in range(12))]
    arrivals = [
        Arrival(0.0, 5 + i if own else 300 + i, 4 + 3 * i, after=0 if i else None, shared_len=600 * own)
        for i, own in enumerate(asked)
    ]
    requests = SyntheticRequests(arrivals, model.spec.vocab_size, kernel.rng("prompts"))
    seqs = run_load(engine, arrivals, requests)
    model.close()
    return Served(trace, seqs, asked, engine)


def steps_of(trace: Trace) -> Iterator[Span]:
    return (span for span in trace.spans if span.kind == "step")


def keys_read(span: Span, served: Served) -> int:
    """Two chunks of the document are read once for all questions about it that are in the step."""
    first = served.seqs[0].id
    chunks = (span.args or {})["chunks"]
    asked = sum(served.asked[seq - first] and start >= 512 for seq, start, *_ in chunks)
    return sum(start + count for _, start, count, _, _ in chunks) - 512 * max(0, asked - 1)


def test_a_real_step_tells_the_keys_it_did_not_read_again(served: Served) -> None:
    read = [keys_read(span, served) for span in steps_of(served.trace)]
    assert [features["read"] for features, _ in samples(served.trace.spans)] == read
    assert max((span.args or {}).get("shared", 0) for span in steps_of(served.trace)) == 7 * 512


def test_the_simulated_engine_shares_and_decides_like_the_real_one(served: Served) -> None:
    def make(kernel: Kernel, runner: SimulatedRunner, kv: KVCache) -> Engine:
        return make_engine(Plan(use=CHUNKED), kernel, kv, runner, 1024, engine.vocab_size)

    engine = served.engine
    again = replay(served.trace, served.seqs, make, KVCache(engine.kv.total, engine.kv.block_size))
    assert decisions(again) == decisions(served.trace)
    shared = [[(span.args or {}).get("shared") for span in steps_of(t)] for t in (again, served.trace)]
    assert shared[0] == shared[1]


def test_a_calibration_with_shared_keys_predicts_the_run_that_it_is_of(served: Served) -> None:
    """Steps as long as the keys that they read, by count: what was measured here is noise."""
    took_s = [1e-3 + 1e-6 * keys_read(span, served) for span in steps_of(served.trace)]
    blind = [
        span._replace(args={name: value for name, value in (span.args or {}).items() if name != "shared"})
        for span in served.trace.spans
    ]
    with_shared, without = (
        fit([(features, s) for (features, _), s in zip(samples(spans), took_s, strict=True)])
        for spans in (served.trace.spans, blind)
    )
    assert with_shared.error < 1e-3
    assert without.error > 10 * with_shared.error


def test_a_prediction_shares_what_the_record_did(served: Served) -> None:
    """At seconds per key that is read: as it was recorded, and if kernels read the keys of each sequence."""
    price = Calibration(pieces=(Piece(upto=inf, seconds={"read": 1e-6}),), error=0.0, num_samples=0)
    record = replace(Record.of(served.trace), calibration=price)
    once = record.predict(record.plan)
    each = replace(record, about={**record.about, "reads_once": False}).predict(record.plan)
    assert once.latency_mean_s < 0.8 * each.latency_mean_s


def test_a_step_costs_what_its_span_says() -> None:
    """Features counted of a step before it runs are those counted of its span. Two texts for each prompt:
    the second has its own copy of the last block."""
    names = ("constant", "rows", "sequences", "scored", "keys", "read", "groups", "copied")
    seconds = {name: 1e-3 * (i + 1) for i, name in enumerate(names)}
    price = Calibration(pieces=(Piece(upto=inf, seconds=seconds),), error=0.0, num_samples=0)
    kernel, kv = Kernel(trace=Trace("simulated")), KVCache(200, 64)
    runner = SimulatedRunner(CalibratedCost(price), kv=kv)
    engine = make_engine(Plan(use=CHUNKED), kernel, kv, runner, 2048, 256)
    requests = [Request(prompt=(*[7] * 700, *[i] * (20 + i)), max_tokens=8, n=2) for i in range(6)]
    run_load(engine, [30.0 * i for i in range(6)], requests)
    assert kernel.trace is not None
    spans = list(steps_of(kernel.trace))
    assert {"shared", "copied"} <= {name for span in spans for name in span.args or {}}
    assert {name for features, _ in samples(spans) for name in features} == {*names}
    for span, (features, _) in zip(spans, samples(spans), strict=True):
        assert span.end_s - span.start_s == pytest.approx(price.predict(features))
