"""Training through a window of layers: losses and gradients of the resident model, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lightwork.memory.residencies import Residency
from lightwork.memory.residencies.sliding import Sliding
from lightwork.memory.residencies.window import Window
from lightwork.models.spec import ModelSpec
from lightwork.models.weights import Weights
from lightwork.train.initial import initial_weights
from lightwork.train.pretrain import Batch, Settings, optimise, predict, pretrain
from lightwork.train.streamed import StreamedLayers

NUM_LAYERS = 6
SPEC = ModelSpec(
    family="llama",
    vocab_size=64,
    hidden_size=16,
    num_layers=NUM_LAYERS,
    num_heads=4,
    num_kv_heads=2,
    head_size=4,
    ffn_size=24,
    max_len=64,
    tied=True,
)
WINDOWS = [
    *(Window(k=k, k_move=m) for k in range(1, NUM_LAYERS + 1) for m in range(1, k + 1)),
    Window(k=4, stay=2),
    Sliding(window=2),
]


def batches(count: int) -> Sequence[Batch]:
    made = torch.Generator().manual_seed(0)
    tokens = [torch.randint(0, SPEC.vocab_size, (2, 12), generator=made) for _ in range(count)]
    positions, scored = torch.arange(12).expand(2, 12), torch.ones(2, 12, dtype=torch.bool)
    return [Batch(tokens_BT=t, positions_BT=positions, scored_BT=scored) for t in tokens]


def fresh() -> Weights:
    return initial_weights(SPEC, 0)


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Of torch."""


@pytest.fixture(scope="module")
def expected() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and gradients of the resident model."""
    weights = fresh()
    loss = F.cross_entropy(*predict(weights, SPEC, batches(1)[0]))
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), [t.grad for t in weights.tensors() if t.grad is not None]


@pytest.mark.parametrize("policy", WINDOWS, ids=repr)
def test_losses_and_gradients_have_the_same_bits_and_only_the_window_is_in_the_arena(
    policy: Residency[Any], expected: tuple[torch.Tensor, list[torch.Tensor]]
) -> None:
    weights = fresh()
    layers = StreamedLayers(weights, SPEC, policy)
    assert policy.ring is not None
    slots = min(policy.ring.slots, NUM_LAYERS)
    assert layers.arena.nbytes == layers.residents.cap_bytes == slots * layers.residents.slot_bytes
    loss = layers.loss(batches(1)[0])
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.equal(loss.detach(), expected[0])
    found = [t.grad for t in weights.tensors() if t.grad is not None]
    assert len(found) == len(expected[1]) == len([*weights.tensors()])
    assert all(torch.equal(a, b) for a, b in zip(found, expected[1], strict=True))


def test_a_window_that_moves_one_layer_copies_those_without_room_once_each_way() -> None:
    for k in range(1, NUM_LAYERS + 1):
        layers = StreamedLayers(fresh(), SPEC, Window(k=k))
        counts = []
        for batch in batches(3):
            before = layers.residents.copies
            layers.loss(batch).backward()  # type: ignore[no-untyped-call]
            counts.append(layers.residents.copies - before)
        assert counts[1:] == [2 * (NUM_LAYERS - k)] * 2


def test_training_ends_with_the_weights_of_training_without_a_window() -> None:
    settings = Settings(steps=4, learning_rate=1e-2, warmup_steps=1)
    plain, apart = fresh(), fresh()
    layers = StreamedLayers(apart, SPEC, Window(k=2))
    losses = [p.loss for p in pretrain(plain, SPEC, batches(4), settings)]
    assert [p.loss for p in optimise(apart.tensors(), layers.loss, batches(4), settings)] == losses
    assert all(torch.equal(a, b) for a, b in zip(plain.tensors(), apart.tensors(), strict=True))
