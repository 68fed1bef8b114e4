"""Counted work: by hand, and against the operations that torch itself counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightwork import models
from lightwork.errors import SpecError
from lightwork.models.presets import PRESETS, preset
from lightwork.models.transformer import forward, logits
from lightwork.models.work import forward_work, product_work

BILLIONS = {
    "mistral-7b": 7.24,
    "llama-13b": 13.0,
    "llama-33b": 32.5,
    "llama-65b": 65.3,
    "llama-2-7b": 6.74,
    "llama-2-13b": 13.0,
    "llama-2-70b": 69.0,
    "llama-3-8b": 8.03,
    "llama-3-70b": 70.6,
    "llama-3.1-405b": 405.9,
    "qwen1.5-32b": 32.5,
    "qwen2.5-14b": 14.8,
    "qwen2.5-32b": 32.8,
    "yi-34b": 34.4,
    "opt-13b": 12.85,
    "opt-66b": 65.7,
    "gptj-6b": 6.05,
    "opt-175b": 175.0,
    "falcon-180b": 179.5,
    "mixtral-8x7b": 46.7,
    "qwen3-235b-a22b": 235.0,
    "deepseek-v3": 671.0,
}


def ops(name: str, chunks: list[tuple[int, int]], scored: int, kind: str) -> float:
    work = forward_work(preset(name), chunks, scored, dtype="bfloat16")
    return sum(w.ops for w in work if w.kind == kind)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name: str) -> None:
    assert preset(name).num_params / 1e9 == pytest.approx(BILLIONS[name], rel=0.01)


def test_an_unknown_preset_lists_the_known() -> None:
    with pytest.raises(SpecError, match="no model shape"):
        preset("gpt-5")
    with pytest.raises(SpecError, match=r"try: shape:llama-3\.1-405b"):
        preset("llama-3-405b")


def test_one_token_of_llama_2_7b_by_hand() -> None:
    per_layer = 4 * 4096 * 4096 + 3 * 4096 * 11_008
    head = 32_000 * 4096
    assert ops("llama-2-7b", [(0, 1)], 1, "matmul") == 2 * (32 * per_layer + head)
    assert ops("llama-2-7b", [(999, 1)], 1, "attention") == 32 * 4 * 4096 * 1000
    read = forward_work(preset("llama-2-7b"), [(999, 1)], 1, dtype="bfloat16")
    assert sum(w.bytes for w in read if w.kind == "matmul") == 2 * (32 * per_layer + head)
    assert sum(w.bytes for w in read if w.kind == "attention") == 1000 * 2 * 32 * 4096 * 2


def test_a_prompt_in_chunks_is_the_same_attention_as_whole() -> None:
    whole = ops("llama-3-8b", [(0, 1000)], 1, "attention")
    parts = sum(ops("llama-3-8b", [(at, 250)], 1, "attention") for at in range(0, 1000, 250))
    assert parts == pytest.approx(whole)


def test_a_window_caps_attention_and_its_bytes() -> None:
    assert ops("mistral-7b", [(30_000, 1)], 1, "attention") == 32 * 4 * 4096 * 4096


def test_experts_touched_grow_with_rows_and_saturate() -> None:
    spec = preset("mixtral-8x7b")
    moved = [
        sum(w.bytes for w in forward_work(spec, [(0, n)], 0, dtype="bfloat16") if w.kind == "matmul")
        for n in (1, 4, 1000)
    ]
    expert = 32 * 3 * 4096 * 14_336 * 2
    assert moved[1] - moved[0] == pytest.approx(expert * 8 * (0.75 - 0.75**4))
    assert moved[2] - moved[0] == pytest.approx(expert * 6)


def test_ranks_share_the_work() -> None:
    spec = preset("llama-3-70b")
    one, eight = (forward_work(spec, [(0, 64)], 1, dtype="bfloat16", tp=n)[0] for n in (1, 8))
    assert math.isclose(one.ops, 8 * eight.ops)


@pytest.mark.parametrize("name", ["llama-2-70b", "opt-13b", "mixtral-8x7b"])
def test_a_layers_products_make_up_the_forward(name: str) -> None:
    spec, rows = preset(name), 300
    whole = forward_work(spec, [(0, rows)], 0, dtype="bfloat16", tp=2)
    products = [w for some in product_work(spec, rows, dtype="bfloat16", tp=2).values() for w in some]
    for kind in ("matmul", "vector"):
        for unit in ("ops", "bytes", "launches"):
            parts = spec.num_layers * sum(getattr(w, unit) for w in products if w.kind == kind)
            head = 1 if (kind, unit) == ("matmul", "launches") else 0
            assert parts + head == pytest.approx(sum(getattr(w, unit) for w in whole if w.kind == kind))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_operations_are_those_that_torch_counts(checkpoint: Callable[..., Path], family: str) -> None:
    model = models.load(str(checkpoint(family)))
    spec, n = model.spec, 16

    def attend(_: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        heads = [x.transpose(0, 1).repeat_interleave(spec.num_heads // x.shape[1], 0) for x in (q, k, v)]
        return ((heads[0] @ heads[1].mT).softmax(-1) @ heads[2]).transpose(0, 1)

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hidden = forward(model.weights, spec, torch.zeros(n, dtype=torch.long), torch.arange(n), attend)
        logits(model.weights, hidden)
    work = forward_work(spec, [(0, n)], n, dtype="float32")
    ours = sum(w.ops for w in work if w.kind == "matmul")
    full_attention = spec.num_layers * 4 * spec.num_heads * spec.head_size * n * n
    router = 2 * n * spec.num_layers * spec.hidden_size * spec.num_experts
    assert counter.get_total_flops() == ours + full_attention + router
