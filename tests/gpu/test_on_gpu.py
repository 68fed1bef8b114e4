"""The Triton kernels, the step on them and its CUDA graphs, on a real GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
pytest.importorskip("triton")

from cases import BLOCK, NUM_BLOCKS, STEPS, TREE, lean, make_rows, random_qkv, reference, scattered

from lightwork import models
from lightwork.decode import sampling
from lightwork.decode.sampling import Sampling
from lightwork.kernels.gpu.fused import gated, rms_norm, rotate_and_store
from lightwork.kernels.gpu.pick import NOT_FINITE, pick
from lightwork.kernels.gpu.tasks import TILES
from lightwork.kernels.rows import Rows
from lightwork.models.gpu_step import GpuStep
from lightwork.models.model import Model
from lightwork.models.pooling import Pooling
from lightwork.models.spec import Rope
from lightwork.models.transformer import _rms, _rotate, rotary
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.embedding import Text
from lightwork.serve.gpu_runner import GpuRunner
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan
from lightwork.serve.sequence import Request
from lightwork.serve.simulate import run_load

pytestmark = pytest.mark.gpu
Make = Callable[..., Path]
DEVICE = "cuda:0"
TYPES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
HEADS = {
    "G1": ((2, 2), 128),
    "G4": ((8, 2), 64),
    "G7": ((28, 4), 128),
    "G8": ((8, 1), 128),
    "odd": ((6, 2), 12),
}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("step", STEPS)
def test_lean_attention_equals_the_reference(
    step: str, heads: str, window: int | None, dtype: torch.dtype
) -> None:
    rows = make_rows(STEPS[step], scattered())
    q, keys, values = random_qkv(len(rows.tokens), *HEADS[heads], dtype, DEVICE)
    right = reference(rows, q, keys, values, window)
    for tiles in ({}, {"tiles": TILES}):
        got = lean(rows, q, keys, values, window=window, units=20, **tiles)
        torch.testing.assert_close(got.float(), right, atol=TYPES[dtype], rtol=TYPES[dtype])


def test_a_long_prefill_equals_the_reference() -> None:
    rows = make_rows([(200, 1100, ())], scattered())
    q, keys, values = random_qkv(len(rows.tokens), (8, 2), 128, torch.bfloat16, DEVICE)
    got = lean(rows, q, keys, values, tiles=TILES, units=132)
    torch.testing.assert_close(got.float(), reference(rows, q, keys, values, None), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("step", STEPS)
def test_neither_programs_nor_the_batch_change_a_bit(step: str) -> None:
    rows = make_rows(STEPS[step], scattered())
    q, keys, values = random_qkv(len(rows.tokens), (8, 2), 128, torch.bfloat16, DEVICE)
    one, *others = [lean(rows, q, keys, values, units=units) for units in (1, 2, 3, 7, 132)]
    assert all(torch.equal(one, other) for other in others)
    for s, shape in enumerate(STEPS[step]):
        mine = np.flatnonzero(rows.seqs == s)
        alone = make_rows([shape], [b for b in rows.tables[s].tolist() if b >= 0])
        assert torch.equal(lean(alone, q[mine], keys, values), one[mine])


@pytest.mark.parametrize("dtype", TYPES)
def test_fused_kernels_equal_what_they_replace(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    # A sum in another order can move a rounding, in the last place of the type.
    near = max(2 * torch.finfo(dtype).eps, 2e-6)
    close = {"atol": 4 * near, "rtol": near}
    x, add = torch.randn(2, 9, 4096, device=DEVICE).to(dtype)
    weight = torch.randn(4096, device=DEVICE).to(dtype)
    total = x + add
    got = rms_norm(x, weight, 1e-5, add_Rd=add)
    assert torch.equal(x, total)
    torch.testing.assert_close(got, _rms(total, weight, 1e-5), **close)

    up = 3 * torch.randn(5, 2 * 14_336, device=DEVICE).to(dtype)
    gate, value = up.chunk(2, -1)
    torch.testing.assert_close(gated(up), F.silu(gate) * value, **close)

    heads, kv_heads, size = 32, 8, 128
    qkv = torch.randn(9, (heads + 2 * kv_heads) * size, device=DEVICE).to(dtype)
    cos, sin = rotary(Rope(), size, torch.arange(9, device=DEVICE) * 700, dtype)
    rotated = _rotate(qkv.view(9, -1, size)[:, : heads + kv_heads], cos, sin)
    values = qkv.view(9, -1, size)[:, heads + kv_heads :].clone()
    slots = torch.randperm(64, device=DEVICE)[:9].int()
    pools = torch.zeros(2, 64, kv_heads, size, device=DEVICE, dtype=dtype)
    rotate_and_store(qkv, cos, sin, slots, pools[0], pools[1])
    torch.testing.assert_close(qkv.view(9, -1, size)[:, :heads], rotated[:, :heads], **close)
    torch.testing.assert_close(pools[0][slots.long()], rotated[:, heads:], **close)
    assert torch.equal(pools[1][slots.long()], values)


def test_picked_tokens_are_those_of_the_reference() -> None:
    rng = np.random.default_rng(0)
    logits = (3 * rng.standard_normal((64, 32_003))).astype(np.float32)
    seeds = rng.integers(0, 1 << 64, 64, dtype=np.uint64)
    positions = rng.integers(0, 100_000, 64)
    heat = np.array([0.0, 1.0, 0.3, 2.0] * 16)
    right = [
        sampling.pick(logits[i], Sampling(temperature=heat[i], seed=int(seeds[i])), int(positions[i]), (), ())
        for i in range(64)
    ]
    logits[63, 77] = float("nan")
    chosen = pick(
        torch.from_numpy(logits).to(DEVICE),
        torch.from_numpy(seeds.view(np.int64)).to(DEVICE),
        torch.from_numpy(positions.astype(np.int32)).to(DEVICE),
        torch.from_numpy(heat).to(DEVICE),
    ).tolist()
    assert chosen == [p.token for p in right[:63]] + [NOT_FINITE]


def decode(lengths: list[int], seed: int = 0, tree: tuple[int, ...] = ()) -> Rows:
    """One row of each of some sequences, whose last key is at lengths - 1; every row scored."""
    rows = make_rows([(n - 1, 1, tree) for n in lengths], scattered(seed))
    rows.tokens = np.random.default_rng(seed).integers(0, 256, len(rows.tokens))
    rows.scored = np.arange(len(rows.tokens))
    return rows


def filled(model: Model) -> list[torch.Tensor]:
    """Random keys and values for a pool of the model."""
    generator = torch.Generator(DEVICE).manual_seed(5)
    pool = model.new_kv(NUM_BLOCKS, BLOCK)
    for part in (pool.keys_LTGD, pool.values_LTGD):
        part.normal_(generator=generator)
    return [pool.keys_LTGD, pool.values_LTGD]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_replayed_graphs_equal_the_reference(checkpoint: Make, family: str) -> None:
    """Contexts grow from step to step, so that a graph reads other tasks than it was captured with."""
    model = models.load(str(checkpoint(family)), device=DEVICE)
    step = GpuStep(model)
    pool, right_pool = model.new_kv(NUM_BLOCKS, BLOCK), model.new_kv(NUM_BLOCKS, BLOCK)
    for held in (pool, right_pool):
        for part, source in zip((held.keys_LTGD, held.values_LTGD), filled(model), strict=True):
            part.copy_(source)
    for grown in range(0, 250, 49):
        for lengths in ([3 + grown], [1, 60 + grown, 17], [5, 2 + grown, 40, 33]):
            rows = decode(lengths, seed=grown)
            got = step.forward(rows, pool).clone()
            torch.testing.assert_close(got, model.forward(rows, right_pool), atol=1e-3, rtol=1e-3)
    assert torch.allclose(pool.keys_LTGD, right_pool.keys_LTGD, atol=1e-3)
    assert 0 < step.num_graphs <= 2


def test_a_replayed_graph_gives_the_bits_of_the_same_step_launched_directly(checkpoint: Make) -> None:
    model = models.load(str(checkpoint("llama")), device=DEVICE, dtype="bfloat16")
    captured, direct = GpuStep(model), GpuStep(model, max_graph_rows=0)
    pool = model.new_kv(NUM_BLOCKS, BLOCK)
    pool.keys_LTGD.normal_()
    pool.values_LTGD.normal_()
    for rows in (decode([5, 77, 130, 299]), decode([6, 78, 131, 300]), decode([9, 40], tree=TREE[:3])):
        first = captured.forward(rows, pool).clone()
        again = captured.forward(rows, pool).clone()
        assert torch.equal(first, again)
        assert torch.equal(first, direct.forward(rows, pool))
    assert captured.num_graphs > 0
    assert direct.num_graphs == 0


def test_a_prefill_beside_decodes_equals_the_reference(checkpoint: Make) -> None:
    model = models.load(str(checkpoint("llama")), device=DEVICE)
    rows = make_rows([(0, 150, ()), (40, 1, ()), (7, 1, TREE)], scattered())
    rows.scored = np.arange(len(rows.tokens))
    got = GpuStep(model).forward(rows, model.new_kv(NUM_BLOCKS, BLOCK)).clone()
    right = model.forward(rows, model.new_kv(NUM_BLOCKS, BLOCK))
    torch.testing.assert_close(got, right, atol=1e-3, rtol=1e-3)


def test_a_plan_on_a_gpu_serves_with_the_kernels(checkpoint: Make) -> None:
    load = [
        Request(prompt=(5, 6, 7, 8, 5, 6, 7), max_tokens=20, sampling=Sampling(temperature=0.0)),
        Request(prompt=tuple(range(40)), max_tokens=20, sampling=Sampling(seed=3)),
        Request(prompt=(9, 10), max_tokens=20, sampling=Sampling(seed=4, top_p=0.8, logprobs=2)),
    ]
    texts = []
    for _ in range(2):
        plan = Plan(model=str(checkpoint("llama")), on=DEVICE, max_len=200, kv_bytes=1 << 22)
        engine = open_engine(plan, Kernel(WallClock()))[0]
        assert isinstance(engine.runner, GpuRunner)
        texts.append([seq.tokens for seq in run_load(engine, [0.0] * len(load), load)])
        assert engine.runner.step.num_graphs > 0
    assert texts[0] == texts[1]
    assert all(len(text) == len(request.prompt) + 20 for text, request in zip(texts[0], load, strict=True))


def test_texts_are_embedded_while_steps_are_captured_and_replayed(checkpoint: Make) -> None:
    load = [Request(prompt=tuple(range(9 + i)), max_tokens=20 + i) for i in range(5)]
    texts = [Text([*range(n)], "", Pooling(modes=("mean",))) for n in (7, 100, 40)]
    said = []
    for embeds in (True, False):
        plan = Plan(model=str(checkpoint("llama")), on=DEVICE, max_len=200, kv_bytes=1 << 22)
        engine, model, _ = open_engine(plan, Kernel(WallClock()))
        asked = [engine.kernel.spawn(engine.embed(text)) for text in texts * 10 if embeds]
        said.append([seq.tokens for seq in run_load(engine, [0.001 * i for i in range(5)], load)])
        made = engine.kernel.run(engine.kernel.gather(*asked))
        for text, vector in zip(texts * 10, made, strict=False):
            alone = model.states(Rows.of_text(np.array(text.tokens), BLOCK), model.new_kv(NUM_BLOCKS, BLOCK))
            np.testing.assert_allclose(vector, alone.mean(0), atol=2e-2, rtol=2e-2)
    assert said[0] == said[1]
