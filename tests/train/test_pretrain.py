"""The trainer: it learns, repeats itself, writes what it trained, and computes what transformers computes."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch

from lightwork.agents.worlds.lessons import WORDS, Lessons
from lightwork.agents.worlds.plan_world import SYLLABLES, PlanWorld
from lightwork.errors import UsageError
from lightwork.models.checkpoint import Checkpoint
from lightwork.models.spec import ModelSpec, Rope, read_spec
from lightwork.models.weights import Weights, from_checkpoint, to_checkpoint
from lightwork.train.export import save_model
from lightwork.train.initial import initial_weights
from lightwork.train.pretrain import Batch, Settings, predict, pretrain
from lightwork.train.vocabulary import build_tokenizer

TOKENIZER = build_tokenizer(WORDS, SYLLABLES)
SPEC = ModelSpec(
    family="llama",
    vocab_size=TOKENIZER.get_vocab_size(),
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    head_size=16,
    ffn_size=48,
    max_len=512,
    rope=Rope(theta=500_000.0),
    qkv_bias=True,
    out_bias=True,
    tied=True,
)


def lessons(seed: int = 0) -> Lessons:
    return Lessons(
        tokenizer=TOKENIZER, rng=Random(seed), world=PlanWorld(), batch_size=2, seq_len=128, max_len=512
    )


def train(steps: int) -> tuple[Weights, list[float]]:
    weights = initial_weights(SPEC, 0)
    settings = Settings(steps=steps, learning_rate=5e-3, warmup_steps=5)
    return weights, [p.loss for p in pretrain(weights, SPEC, lessons(), settings)]


def test_thirty_steps_lower_the_loss() -> None:
    _, losses = train(30)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_one_seed_gives_one_set_of_weights() -> None:
    for a, b in zip(train(4)[0].tensors(), train(4)[0].tensors(), strict=True):
        assert torch.equal(a, b)


def test_a_folder_gives_back_the_weights_it_was_written_from(tmp_path: Path) -> None:
    weights, _ = train(2)
    save_model(tmp_path, weights, SPEC, TOKENIZER, torch.float32)
    spec = read_spec(tmp_path)
    assert (spec.rope, spec.qkv_bias, spec.out_bias, spec.tied) == (SPEC.rope, True, True, True)
    again = to_checkpoint(from_checkpoint(spec, Checkpoint(tmp_path).get), spec)
    for name, tensor in to_checkpoint(weights, SPEC).items():
        assert torch.equal(tensor, again[name]), name


def test_sequences_of_a_batch_do_not_see_each_other_nor_the_future() -> None:
    weights, batch = initial_weights(SPEC, 0), lessons().batch()
    scores, _ = predict(weights, SPEC, batch)
    changed = batch.tokens_BT.clone()
    changed[1] = 7
    changed[0, -1] = 7
    scored = batch.scored_BT.clone()
    scored[:, -1] = scored[1] = False
    kept = Batch(tokens_BT=batch.tokens_BT, positions_BT=batch.positions_BT, scored_BT=scored)
    other = Batch(tokens_BT=changed, positions_BT=batch.positions_BT, scored_BT=scored)
    torch.testing.assert_close(predict(weights, SPEC, kept)[0], predict(weights, SPEC, other)[0])
    assert len(scores) == int(batch.scored_BT.sum())


def test_the_learning_rate_warms_up_and_decays_to_its_floor() -> None:
    settings = Settings(steps=1000, learning_rate=1.0, warmup_steps=100, floor=0.1)
    assert settings.rate(0) == pytest.approx(0.01, rel=0.01)
    assert max(settings.rate(s) for s in range(1000)) > 0.95
    assert settings.rate(999) == pytest.approx(0.1, rel=0.01)


def test_training_ends_when_the_batches_do() -> None:
    weights, batch = initial_weights(SPEC, 0), lessons().batch()
    assert len(list(pretrain(weights, SPEC, [batch, batch], Settings(steps=9)))) == 2


def test_families_that_are_not_trained_here_do_not_start() -> None:
    with pytest.raises(UsageError, match="qwen3"):
        initial_weights(ModelSpec.from_config({"architectures": ["Qwen3ForCausalLM"], **QWEN}), 0)


def test_lessons_score_answers_only_and_keep_positions_inside_the_context() -> None:
    source = lessons()
    source.gap_share = 1.0
    for _ in range(20):
        batch = source.batch()
        assert int(batch.positions_BT.max()) < 512
        text = TOKENIZER.decode(batch.tokens_BT[0][batch.scored_BT[0]].tolist())
        assert text.startswith("1. ")
        assert "question" not in text


@pytest.mark.peer
def test_the_loss_is_that_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    weights, batch = initial_weights(SPEC, 0), lessons().batch()
    save_model(tmp_path, weights, SPEC, TOKENIZER, torch.float32)
    peer = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        theirs = peer(batch.tokens_BT, position_ids=batch.positions_BT).logits[:, :-1][batch.scored_BT[:, 1:]]
        ours, _ = predict(weights, SPEC, batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


QWEN = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}
