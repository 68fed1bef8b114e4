"""The models of experts on which claims are measured, and the routes of texts that are new to them.

Six layers of 16 experts, two million parameters, of which a token takes one expert in each layer, or more;
trained once on PlanWorld's chats, to predict every token, in two minutes of one core.

L layers  K experts that a token takes
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lightwork import models
from lightwork.agents.worlds import Split
from lightwork.claims._chats import lessons, one_thread, words
from lightwork.claims._random_llama import written_once
from lightwork.kernels.rows import Rows
from lightwork.models.routing import Recorder, RoutingTrace
from lightwork.models.spec import ModelSpec, Rope
from lightwork.train.export import save_model
from lightwork.train.initial import initial_weights
from lightwork.train.moe import pretrain_experts
from lightwork.train.pretrain import Batch, Settings

LAYERS, EXPERTS = 6, 16
STEPS = 300
KEPT = (0, 10, 30, 100, STEPS)
"""Steps after which the weights are kept."""


def _spec(k: int) -> ModelSpec:
    return ModelSpec(
        family="qwen3_moe",
        vocab_size=words().get_vocab_size(),
        hidden_size=96,
        num_layers=LAYERS,
        num_heads=3,
        num_kv_heads=3,
        head_size=32,
        ffn_size=64,
        max_len=512,
        rope=Rope(theta=500_000.0),
        qk_norm=True,
        tied=True,
        num_experts=EXPERTS,
        experts_per_token=k,
        moe=frozenset(range(LAYERS)),
        normalise_gates=False,  # of one expert the gate would be 1, and the router would learn nothing
    )


def folder(k: int = 1, step: int = STEPS) -> Path:
    """Of the model that takes k experts per token, after so many steps of KEPT; trained now if it is not
    there."""
    return written_once(f"moe-2m-top{k}", lambda part: _train(part, k)) / f"step-{step}"


def _train(part: Path, k: int) -> None:
    spec = _spec(k)
    weights = initial_weights(spec, 0)
    settings = Settings(steps=STEPS, learning_rate=3e-3, warmup_steps=20)
    with one_thread():
        save_model(part / "step-0", weights, spec, words(), torch.float32)
        for after in pretrain_experts(weights, spec, _every_token(lessons("moe", 8)), settings):
            if after.step + 1 in KEPT:
                save_model(part / f"step-{after.step + 1}", weights, spec, words(), torch.float32)


def _every_token(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Score all tokens, not only those of answers."""
    for batch in batches:
        yield replace(batch, scored_BT=batch.positions_BT > 0)


def texts(name: str, split: Split = "heldout") -> Iterator[list[int]]:
    """Chats without end, in which tools have names that no training text has, or else such ones."""
    for batch in lessons(name, 1, split):
        yield batch.tokens_BT[0, : int(batch.positions_BT.max()) + 1].tolist()


@one_thread()
def routes(folder: Path, texts: Iterator[Sequence[int]], num_tokens: int) -> RoutingTrace:
    """Of the first so many tokens of these texts, through the model that serves."""
    model, recorder, left = models.load(str(folder)), Recorder(), num_tokens
    model.routed = recorder
    while left > 0:
        tokens = next(texts)[:left]
        rows = Rows.of_text(np.array(tokens), len(tokens))
        model.forward(rows, model.new_kv(1, len(tokens)))
        left -= len(tokens)
    return recorder.trace()
