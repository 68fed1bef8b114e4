"""Smaller experts: what stays, what it takes, and that nothing else of the model changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lightwork import models
from lightwork.errors import CapacityError, RangeError
from lightwork.kernels.cpu.formats import F32
from lightwork.models.compressions import Compression, Usage
from lightwork.models.compressions.low_rank_experts import LowRankExperts
from lightwork.models.compressions.merge_experts import MergeExperts
from lightwork.models.compressions.mixed_bits import STEPS, MixedBits, allot
from lightwork.models.compressions.prune_experts import PruneExperts
from lightwork.models.mixture import Counted, Mixture, through
from lightwork.models.model import Model
from lightwork.models.packed import read_layout
from lightwork.models.precisions.quant import Quant
from lightwork.models.precisions.stored import Stored
from lightwork.models.weights import Weights
from lightwork.testing import text_logits

TOKENS = list(range(40, 60))
EXPERTS, LAYERS = 6, 2


def folder(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("qwen3_moe", num_experts=EXPERTS, mlp_only_layers=[1])


def opened(checkpoint: Callable[..., Path]) -> Model:
    return models.load(str(folder(checkpoint)))


def usage(outputs: list[float] | None = None) -> Usage:
    loads = np.array([[40, 10, 30, 0, 20, 5]] * LAYERS)
    outputs_LE = np.array([outputs or [4.0, 9.0, 3.0, 0.0, 8.0, 1.0]] * LAYERS)
    return Usage(loads_LE=loads, outputs_LE=outputs_LE)


def logits(model: Model, weights: Weights, num_experts: int = EXPERTS) -> np.ndarray:
    spec = replace(model.spec, num_experts=num_experts)
    return text_logits(Model(spec, weights, model.tokenizer, {}, "cpu"), TOKENS)


def test_pruning_keeps_those_that_add_most_and_their_rows_of_the_router(
    checkpoint: Callable[..., Path],
) -> None:
    model = opened(checkpoint)
    found = PruneExperts(keep=3).compress(model.weights, model.spec, usage())
    before, after = model.weights.layers[2], found.weights.layers[2]
    assert before.router is not None
    assert after.router is not None
    for name in ("router", "up", "down"):
        assert torch.equal(getattr(after, name), getattr(before, name)[[0, 1, 4]])
    assert found.weights.layers[1] is model.weights.layers[1]
    assert found.spec.num_experts == 3
    assert 2 * found.expert_bytes == LAYERS * EXPERTS * (before.up[0].nbytes + before.down[0].nbytes)
    assert np.isfinite(logits(model, found.weights, 3)).all()


def test_pruning_what_is_never_taken_changes_nothing(checkpoint: Callable[..., Path]) -> None:
    """Where gates are normalised over the experts taken."""
    model = models.load(str(checkpoint("qwen3_moe", num_experts=16, norm_topk_prob=True)))
    counted, few = Counted(model.spec), TOKENS[:4]
    model.hidden = through(model, Mixture(weights=model.weights, spec=model.spec, watch=counted))
    plain = text_logits(model, few)
    used = int((counted.usage.loads_LE > 0).sum(1).max())
    found = PruneExperts(keep=used).compress(model.weights, model.spec, counted.usage)
    pruned = text_logits(Model(found.spec, found.weights, model.tokenizer, {}, "cpu"), few)
    assert used < 16
    np.testing.assert_allclose(pruned, plain, rtol=1e-4, atol=1e-4)


def twins(model: Model) -> Weights:
    """Experts 3 to 5 of each layer are 0 to 2 with their neurons in another order."""
    layers = list(model.weights.layers)
    for i in (0, 2):
        layer = layers[i]
        assert layer.router is not None
        order = torch.randperm(layer.down.shape[2], generator=torch.Generator().manual_seed(i))
        up = layer.up.view(EXPERTS, 2, -1, layer.up.shape[2])
        layers[i] = replace(
            layer,
            router=torch.cat([layer.router[:3], layer.router[:3]]),
            up=torch.cat([up[:3], up[:3, :, order]]).reshape(layer.up.shape),
            down=torch.cat([layer.down[:3], layer.down[:3][:, :, order]]),
        )
    return replace(model.weights, layers=layers)


def test_merging_twins_is_leaving_one_of_them_out(checkpoint: Callable[..., Path]) -> None:
    """Whatever the order of their neurons is."""
    model = opened(checkpoint)
    weights = twins(model)
    counts = np.array([[40, 30, 20, 10, 8, 6]] * LAYERS)
    found = MergeExperts(keep=3).compress(
        weights, model.spec, Usage(loads_LE=counts, outputs_LE=counts.astype(float))
    )
    for i in (0, 2):
        for name in ("router", "up", "down"):
            torch.testing.assert_close(
                getattr(found.weights.layers[i], name), getattr(weights.layers[i], name)[:3]
            )
    assert found.spec.num_experts == 3


def test_merged_experts_are_means_weighted_by_usage(checkpoint: Callable[..., Path]) -> None:
    model = opened(checkpoint)
    found = MergeExperts(keep=5).compress(model.weights, model.spec, usage())
    order = [0, 2, 4, 1, 5]  # most used first; 3, which nobody takes, joins one of them
    for i in (0, 2):
        before, after = model.weights.layers[i].router, found.weights.layers[i].router
        assert before is not None
        assert after is not None
        torch.testing.assert_close(after, before[order], rtol=1e-3, atol=1e-3)


def test_bits_go_where_a_byte_removes_most_error() -> None:
    sizes = {4: 5, 8: 9, 16: 16}
    errors = np.array([[[8.0, 1.0, 0.0], [80.0, 10.0, 0.0], [4.0, 0.5, 0.0]]])
    spent = {budget: allot(errors, sizes, budget).tolist()[0] for budget in (15, 18, 19, 23, 30, 48)}
    assert spent[15] == spent[18] == [0, 0, 0]
    assert spent[19] == [0, 1, 0]
    assert spent[23] == [1, 1, 0]
    assert spent[30] == [1, 2, 0]
    assert spent[48] == [2, 2, 2]
    with pytest.raises(CapacityError, match="3 experts take 15 bytes in 4 bits"):
        allot(errors, sizes, 14)


def test_a_budget_is_kept_and_more_bits_are_nearer(checkpoint: Callable[..., Path]) -> None:
    model = opened(checkpoint)
    plain, numbers = logits(model, model.weights), LAYERS * EXPERTS * 3 * 32 * 24
    away, taken = [], []
    for mean_bits in (13.0, 18.0, 40.0):
        found = MixedBits(mean_bits=mean_bits).compress(model.weights, model.spec, usage())
        assert 8 * found.expert_bytes <= mean_bits * numbers
        away.append(float(np.abs(logits(model, found.weights) - plain).max()))
        taken.append(found.expert_bytes)
    assert taken == sorted(taken)
    assert away[0] > away[1] > away[2] > 0
    assert np.array_equal(logits(model, model.weights), plain)


@pytest.mark.parametrize("group", [32, 128])
def test_experts_in_4_bits_take_a_quarter_of_the_bytes_or_less(
    checkpoint: Callable[..., Path], group: int
) -> None:
    """Of those that the compiled step reads, scales and all, against float32."""
    path = checkpoint("qwen3_moe", hidden_size=128, moe_intermediate_size=128, head_dim=32)
    spec = models.load(str(path)).spec
    nbytes = []
    for precision in (Stored(), Quant(bits=4, group=group)):
        layout, _, _ = read_layout(path, spec, precision)
        first = layout.place(0, "up")
        up_and_down = layout.matrices[first : first + 3 * spec.num_experts]
        nbytes.append(sum(blocks * block for _, blocks, _, block in up_and_down))
    assert layout.form.code != F32
    assert nbytes[0] == 4 * 3 * 128 * 128 * spec.num_experts
    assert nbytes[0] >= 4 * nbytes[1]


def test_low_rank_differences_are_exact_at_full_rank(checkpoint: Callable[..., Path]) -> None:
    model = opened(checkpoint)
    plain, away = logits(model, model.weights), []
    for rank in (2, 12, 32):
        found = LowRankExperts(rank=rank).compress(model.weights, model.spec, usage())
        away.append(float(np.abs(logits(model, found.weights) - plain).max()))
    assert away[0] > away[1] > away[2]
    assert away[2] < 1e-3
    few = LowRankExperts(rank=2).compress(model.weights, model.spec, usage())
    numbers = 48 * 32 + 32 * 24 + EXPERTS * 2 * (48 + 32 + 32 + 24)
    assert few.expert_bytes == 4 * LAYERS * numbers


@pytest.mark.parametrize("compression", [PruneExperts(keep=1), MergeExperts(keep=7)], ids=repr)
def test_what_no_token_could_be_served_with_is_refused(
    checkpoint: Callable[..., Path], compression: Compression
) -> None:
    model = opened(checkpoint)
    with pytest.raises(RangeError, match="of 6 experts of a layer are kept"):
        compression.compress(model.weights, model.spec, usage())
    with pytest.raises(RangeError, match="rank is 0"):
        LowRankExperts(rank=0)
    assert STEPS == (4, 8, 16)
