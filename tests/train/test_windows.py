"""Gradients of windows, whatever their sizes, are those of the whole sequence at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightwork import models
from lightwork.errors import InvariantError
from lightwork.models.model import Model
from lightwork.models.precisions import Precision
from lightwork.models.precisions.quant import Quant
from lightwork.models.precisions.stored import Stored
from lightwork.models.transformer import block, norm, rotary
from lightwork.models.unpacked import Unpacked
from lightwork.serve.training import Slice, Training
from lightwork.train.frozen import Tensors, frozen
from lightwork.train.lora import Lora
from lightwork.train.windows import Frozen, Windows

Make = Callable[..., Path]
LENGTH = 37


@pytest.fixture(scope="module")
def model(checkpoint: Make) -> Model:
    return models.load(str(checkpoint("llama")), dtype="float64", device="cpu")


def tokens_of(model: Frozen | Model, length: int = LENGTH) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, model.spec.vocab_size, length))


def lora_for(source: Frozen, modules: tuple[str, ...] = ()) -> Lora:
    """An adapter that has been trained already: with B = 0 nothing would flow through A."""
    made = Lora(source.spec, rank=4, alpha=8, modules=modules, dtype=source.dtype)
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in made:
            parameter += 0.05 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
    return made


def whole(source: Frozen, lora: Lora, tokens_T: Tensor, weights_T: Tensor) -> float:
    """Ordinary training: one forward, one backward."""
    spec, positions_T = source.spec, torch.arange(len(tokens_T))

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(spec.num_heads // spec.num_kv_heads, 1) for x in (k, v))
        near = positions_T[:, None] - positions_T < (spec.window(layer) or len(tokens_T))
        seen = near & (positions_T <= positions_T[:, None])
        scores = torch.einsum("qhd,khd->hqk", q, k) / spec.head_size**0.5
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)

    x_Td = source.embed(tokens_T, positions_T)
    cos_sin = rotary(spec.rope, spec.head_size, positions_T, source.dtype)
    for i in range(spec.num_layers):
        x_Td = block(i, x_Td, source.layer(i), spec, cos_sin, attend, lora.adapt)
    losses_T = F.cross_entropy(source.score(x_Td)[:-1], tokens_T[1:], reduction="none")
    loss = losses_T @ weights_T[1:].to(losses_T.dtype)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def windowed(
    source: Frozen, lora: Lora, tokens_T: Tensor, weights_T: Tensor, size: Callable[[], int]
) -> tuple[float, Windows]:
    windows, way = (
        Windows(source, lora, tokens_T, weights_T),
        Training([len(tokens_T)], source.spec.num_layers),
    )
    loss = 0.0
    while not way.finished:
        piece = way.ahead(size())[0]
        loss += windows.compute(piece)
        way.move([piece])
    return loss, windows


def gradients(lora: Lora) -> list[Tensor]:
    found = []
    for parameter in lora:
        assert parameter.grad is not None
        found.append(parameter.grad)
        parameter.grad = None
    return found


def some_weights(length: int = LENGTH) -> Tensor:
    """A prompt that is given, then an answer."""
    return torch.cat((torch.zeros(9), torch.full((length - 9,), 1 / (length - 9)))).double()


@pytest.mark.parametrize("size", [1, 5, 8, 16, LENGTH])
def test_gradients_of_windows_are_those_of_the_whole(model: Model, size: int) -> None:
    source = Tensors(model.spec, model.weights)
    tokens_T, weights_T, lora = tokens_of(model), some_weights(), lora_for(source)
    want_loss = whole(source, lora, tokens_T, weights_T)
    want = gradients(lora)
    loss, _ = windowed(source, lora, tokens_T, weights_T, lambda: size)
    assert loss == pytest.approx(want_loss, rel=1e-12)
    for got, expected in zip(gradients(lora), want, strict=True):
        assert expected.abs().max() > 1e-7
        assert (got - expected).abs().max() < 1e-13


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 20), min_size=100, max_size=100), length=st.integers(2, 40))
def test_any_sequence_of_windows_gives_them(checkpoint: Make, sizes: list[int], length: int) -> None:
    model = models.load(str(checkpoint("qwen2")), dtype="float64", device="cpu")
    source = Tensors(model.spec, model.weights)
    tokens_T, weights_T = tokens_of(model, length), torch.ones(length).double()
    lora = lora_for(source, ("q_proj", "v_proj", "down_proj"))
    whole(source, lora, tokens_T, weights_T)
    want = gradients(lora)
    rest = iter(sizes * 10)
    windowed(source, lora, tokens_T, weights_T, lambda: next(rest))
    for got, expected in zip(gradients(lora), want, strict=True):
        assert (got - expected).abs().max() < 1e-12 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(
    "precision",
    [Stored(), Quant(bits=8), Quant(bits=4, activations=32), Quant(bits=4, activations=32, table="nf4")],
    ids=repr,
)
def test_packed_weights_train_as_what_they_stand_for(checkpoint: Make, precision: Precision) -> None:
    """Weights packed for the compiled step give the gradients of a model that holds the same numbers."""
    pytest.importorskip("numba")
    compiled = models.load_compiled(str(checkpoint("llama")), precision=precision)
    source = frozen(compiled)
    plain = Plain(Unpacked(compiled.layout, compiled.weights, dtype=torch.float64))
    for other in (source, plain):
        assert other.spec == compiled.spec
    tokens_T, weights_T = tokens_of(source), some_weights()
    results = []
    for each, size in ((plain, LENGTH), (source, 8)):
        lora = lora_for(each)
        loss, _ = windowed(each, lora, tokens_T, weights_T, lambda size=size: size)  # type: ignore[misc]
        results.append((loss, gradients(lora)))
    compiled.close()
    (want_loss, want), (loss, got) = results
    assert loss == pytest.approx(want_loss, rel=1e-5)
    assert all((g - w).abs().max() < 1e-5 for g, w in zip(got, want, strict=True))


class Plain:
    """Unpacked weights in float64."""

    def __init__(self, weights: Unpacked) -> None:
        self.spec, self.dtype, self._weights = weights.spec, weights.dtype, weights

    def embed(self, tokens_R: Tensor, positions_R: Tensor) -> Tensor:
        return self._weights.embedding(tokens_R)

    def layer(self, i: int) -> models.weights.Layer:
        return self._weights.layer(i)

    def score(self, hidden_Rd: Tensor) -> Tensor:
        return F.linear(norm(hidden_Rd, self._weights.norm(), None, self.spec), self._weights.head())


def test_stored_weights_are_unpacked_exactly(checkpoint: Make) -> None:
    pytest.importorskip("numba")
    folder = str(checkpoint("llama"))
    compiled = models.load_compiled(folder, precision=Stored())
    stored = models.load(folder, dtype="float32", device="cpu").weights
    weights = Unpacked(compiled.layout, compiled.weights, dtype=torch.float32)
    assert torch.equal(weights.head(), stored.head)
    assert torch.equal(weights.embedding(torch.arange(9)), stored.embed[:9])
    for i, layer in enumerate(stored.layers):
        for name in ("norm1", "qkv", "out", "norm2", "up", "down"):
            assert torch.equal(getattr(weights.layer(i), name), getattr(layer, name)), name
    compiled.close()


def test_what_is_kept_is_a_quarter_of_what_autograd_keeps(model: Model) -> None:
    source = Tensors(model.spec, model.weights)
    tokens_T, weights_T, lora = tokens_of(model, 512), torch.ones(512).double(), lora_for(source)
    own = {t.untyped_storage().data_ptr() for t in (*model.weights.tensors(), *lora)}
    saved: dict[int, int] = {}
    peak = 0

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        whole(source, lora, tokens_T, weights_T)
        eager = sum(saved.values())
        saved.clear()
        windows, way = Windows(source, lora, tokens_T, weights_T), Training([512], source.spec.num_layers)
        while not way.finished:
            piece = way.ahead(16)[0]
            windows.compute(piece)
            way.move([piece])
            peak, _ = max(peak, sum(saved.values())), saved.clear()
    assert windows.nbytes + peak <= eager / 4


def test_windows_out_of_order_are_refused(model: Model) -> None:
    source = Tensors(model.spec, model.weights)
    windows = Windows(source, lora_for(source), tokens_of(model), some_weights())
    for wrong in (
        Slice(source.spec.num_layers - 1, LENGTH - 5, 5, back=True),
        Slice(0, 1, 5),
        Slice(1, 0, 5),
    ):
        with pytest.raises(InvariantError):
            windows.compute(wrong)
    windows.compute(Slice(0, 0, 10))
    with pytest.raises(InvariantError):
        windows.compute(Slice(0, 5, 10))
