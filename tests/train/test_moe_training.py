"""Models of experts are trained so that all experts are taken, and written as others read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from lightwork import models
from lightwork.agents.worlds.lessons import WORDS, Lessons
from lightwork.agents.worlds.plan_world import SYLLABLES, PlanWorld
from lightwork.errors import CheckpointError
from lightwork.models.checkpoint import Checkpoint
from lightwork.models.routing import Recorder, RoutingTrace
from lightwork.models.spec import ModelSpec, read_spec
from lightwork.models.weights import Weights, from_checkpoint, to_checkpoint
from lightwork.testing import FAMILIES, text_logits
from lightwork.train.export import save_model
from lightwork.train.initial import initial_weights
from lightwork.train.moe import imbalance, pretrain_experts
from lightwork.train.pretrain import Settings, predict
from lightwork.train.vocabulary import build_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = build_tokenizer(WORDS, SYLLABLES)
SPEC = ModelSpec(
    family="qwen3_moe",
    vocab_size=TOKENIZER.get_vocab_size(),
    hidden_size=32,
    num_layers=3,
    num_heads=2,
    num_kv_heads=2,
    head_size=16,
    ffn_size=16,
    dense_ffn_size=48,
    max_len=512,
    qk_norm=True,
    tied=True,
    num_experts=8,
    experts_per_token=1,
    moe=frozenset({0, 2}),
    normalise_gates=False,
)


def lessons() -> Lessons:
    return Lessons(
        tokenizer=TOKENIZER, rng=Random(0), world=PlanWorld(), batch_size=2, seq_len=128, max_len=512
    )


def train(steps: int, balance: float) -> tuple[Weights, list[float]]:
    weights = initial_weights(SPEC, 0)
    settings = Settings(steps=steps, learning_rate=5e-3, warmup_steps=5)
    ways = pretrain_experts(weights, SPEC, lessons(), settings, balance=balance)
    return weights, [after.loss for after in ways]


def routes(weights: Weights) -> RoutingTrace:
    recorder, other = Recorder(), lessons()
    other.rng = Random(1)
    with torch.no_grad():
        predict(weights, SPEC, other.batch(), routed=recorder)
    return recorder.trace()


def test_imbalance_is_one_if_experts_are_taken_evenly_and_their_number_if_one_is() -> None:
    even = torch.full((6, 3), 1 / 3)
    assert imbalance(even, torch.tensor([[0, 1, 2, 0, 1, 2]]).T).item() == pytest.approx(1.0)
    first = torch.tensor([[1.0, 0.0, 0.0]] * 4)
    assert imbalance(first, torch.zeros(4, 1, dtype=torch.int64)).item() == pytest.approx(3.0)
    twice = torch.tensor([[0.5, 0.25, 0.25]] * 2)  # shares 1/2, 1/4, 1/4 of two choices each
    assert imbalance(twice, torch.tensor([[0, 1], [0, 2]])).item() == pytest.approx(3 * (0.25 + 0.125))


def test_the_gradient_of_imbalance_makes_the_busiest_less_probable() -> None:
    scores_RE = torch.zeros(4, 3, requires_grad=True)
    imbalance(scores_RE.softmax(-1), torch.tensor([[0], [0], [0], [1]])).backward()
    assert scores_RE.grad is not None
    assert (scores_RE.grad[:, 0] > 0).all()
    assert (scores_RE.grad[:, 2] < 0).all()


def test_thirty_steps_lower_the_loss_and_all_experts_are_taken() -> None:
    weights, losses = train(30, 0.01)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert (routes(weights).loads() > 0).all()


def test_balance_makes_the_busiest_expert_less_busy() -> None:
    busiest = [int(routes(train(30, balance)[0]).loads().max()) for balance in (0.0, 0.1)]
    assert busiest[1] < busiest[0]


def test_the_folder_is_a_checkpoint_that_the_loader_reads(tmp_path: Path) -> None:
    weights, _ = train(2, 0.01)
    save_model(tmp_path, weights, SPEC, TOKENIZER, torch.float32)
    assert (read_spec(tmp_path).moe, read_spec(tmp_path).dense_ffn_size) == (SPEC.moe, 48)
    batch = lessons().batch()
    with torch.no_grad():
        ours, _ = predict(weights, SPEC, batch)
    read = text_logits(models.load(str(tmp_path)), batch.tokens_BT[0, :-1].tolist())
    scored = batch.scored_BT[0, 1:].numpy()
    np.testing.assert_allclose(read[scored], ours[: scored.sum()].numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.peer
def test_transformers_computes_the_same(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    weights, _ = train(2, 0.01)
    save_model(tmp_path, weights, SPEC, TOKENIZER, torch.float32)
    peer = transformers.Qwen3MoeForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = lessons().batch().tokens_BT[:1]
    with torch.no_grad():
        theirs = peer(tokens).logits[0].numpy()
    ours = text_logits(models.load(str(tmp_path)), tokens[0].tolist())
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_taken_apart_into_the_tensors_they_were_read_from(
    checkpoint: Callable[..., Path], family: str
) -> None:
    folder = checkpoint(family)
    spec, read = read_spec(folder), {}

    def get(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        read[name] = written.get(name, shape)
        return read[name]

    written = Checkpoint(folder)
    again = to_checkpoint(from_checkpoint(spec, get), spec)
    assert again.keys() == read.keys()
    for name, tensor in again.items():
        assert torch.equal(tensor, read[name]), name


def test_a_family_whose_shape_cannot_be_told_is_not_written(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    model = models.load(str(checkpoint("gpt2")))
    with pytest.raises(CheckpointError, match="gpt2 models cannot be written"):
        save_model(tmp_path / "new", model.weights, model.spec, TOKENIZER)
    assert not (tmp_path / "new").exists()
