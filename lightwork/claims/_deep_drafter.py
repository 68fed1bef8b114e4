"""The drafter on which EasySpec's claims are measured: deep and narrow, distilled from the built-in model.

Twelve layers of width 64, taught what the built-in model says next everywhere in PlanWorld's chats, in two
minutes of one core.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from lightwork.agents.worlds.lessons import WORDS, Lessons
from lightwork.agents.worlds.plan_world import SYLLABLES, PlanWorld
from lightwork.claims._chats import one_thread
from lightwork.claims._random_llama import written_once
from lightwork.models import load
from lightwork.models.spec import ModelSpec, Rope
from lightwork.train.export import save_model
from lightwork.train.initial import initial_weights
from lightwork.train.pretrain import Batch, Settings, optimise, predict
from lightwork.train.vocabulary import build_tokenizer

TEACHER = "tiny:llama"
LAYERS, STEPS = 12, 450


@cache
def deep_drafter() -> str:
    """Its folder; taught now if it is not there."""
    return str(written_once("deep-drafter", _teach))


def _spec(vocab_size: int) -> ModelSpec:
    return ModelSpec(
        family="llama",
        vocab_size=vocab_size,
        hidden_size=64,
        num_layers=LAYERS,
        num_heads=2,
        num_kv_heads=2,
        head_size=32,
        ffn_size=160,
        max_len=2048,
        rope=Rope(theta=500_000.0),
        qkv_bias=True,
        out_bias=True,
        tied=True,
    )


def _teach(part: Path) -> None:
    teacher, words = load(TEACHER), build_tokenizer(WORDS, SYLLABLES)
    spec = _spec(words.get_vocab_size())
    weights = initial_weights(spec, 0)
    lessons = Lessons(tokenizer=words, rng=Random("deep drafter"), world=PlanWorld(), batch_size=8, top=3)

    def loss(batch: Batch) -> Tensor:
        whole = replace(batch, scored_BT=batch.positions_BT > 0)
        with torch.no_grad():
            right_NV, _ = predict(teacher.weights, teacher.spec, whole)
        mine_NV, _ = predict(weights, spec, whole)
        return F.kl_div(mine_NV.log_softmax(-1), right_NV.softmax(-1), reduction="batchmean")

    with one_thread():
        for _ in optimise(weights.tensors(), loss, lessons, Settings(steps=STEPS, learning_rate=4e-3)):
            pass
    save_model(part, weights, spec, words, torch.float32)
