"""Keys that sequences share: priced once where kernels read them once, as the compiled step plans it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lightwork.cluster import parse_place
from lightwork.memory.kv import KVCache
from lightwork.models.presets import preset
from lightwork.models.work import forward_work
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.loads.documents import Documents
from lightwork.serve.plan import Plan
from lightwork.serve.rows import build_rows
from lightwork.serve.schedulers import Chunk, Step
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.shared_keys import shared_keys
from lightwork.serve.simulate import simulate


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


def test_the_compiled_step_saves_the_same(checkpoint: Callable[..., Path]) -> None:
    pytest.importorskip("numba")
    from lightwork import models
    from lightwork.kernels.cpu.state import ALIKE, CHUNK, FIRST_OF_GROUP
    from lightwork.models.precisions.stored import Stored

    kv = KVCache(200, 64)
    step = decodes(kv, TEXTS)
    model = models.load_compiled(str(checkpoint("llama", max_position_embeddings=2048)), precision=Stored())
    model.logits(build_rows(step, kv)[0], model.new_kv(200, 64))
    members = model._state.arrays["members"][: len(TEXTS)]
    saved = sum(int(m[ALIKE]) for i, m in enumerate(members) if m[FIRST_OF_GROUP] != i)
    model.close()
    assert saved * CHUNK == sum(shared_keys(step, kv)) > 0


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
