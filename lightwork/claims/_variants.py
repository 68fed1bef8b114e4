"""Fine-tunes of one base, by short training: adapters, last layers, whole models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightwork import models
from lightwork.agents.worlds.lessons import WORDS, Lessons
from lightwork.agents.worlds.plan_world import SYLLABLES, PlanWorld
from lightwork.models.peft import write_adapter
from lightwork.models.weights import Layer, to_checkpoint
from lightwork.train.lora import Lora
from lightwork.train.pretrain import Batch, Settings, predict, pretrain
from lightwork.train.vocabulary import build_tokenizer

Batches = Callable[[int], Iterable[Batch]]
"""What fine-tune number i learns from."""
EIGHT = [f"adapter-{i}" for i in range(3)] + [f"last-{i}" for i in range(3)] + ["whole-0", "whole-1"]
RANK, STEPS, RATE = 4, 6, 1e-4


def lessons(i: int) -> Lessons:
    """What fine-tune number i of the built-in model learns from."""
    tokenizer = build_tokenizer(WORDS, SYLLABLES)
    return Lessons(
        tokenizer=tokenizer, rng=Random(i), world=PlanWorld(), batch_size=2, seq_len=96, max_len=512
    )


def eight(base: Path, folder: Path, batches: Batches, steps: int = STEPS) -> None:
    """Fill a folder with three adapters, three models with the last layer tuned, two tuned as a whole."""
    for i, name in enumerate(EIGHT):
        if name.startswith("adapter"):
            tune_adapter(base, folder / name, batches(i), steps)
        else:
            tune(base, folder / name, batches(i), last_only=name.startswith("last"), steps=steps)


def tune(base: Path, target: Path, batches: Iterable[Batch], *, last_only: bool, steps: int = STEPS) -> None:
    """Train a copy of the base for a few steps, in the numbers it is stored in."""
    model = models.load(str(base))
    last = model.weights.layers[-1]
    for tensor in model.weights.tensors():
        tensor.requires_grad_(not last_only or any(tensor is getattr(last, n) for n in Layer.__slots__))
    settings = Settings(steps=steps, learning_rate=RATE, warmup_steps=1, weight_decay=0.0)
    for _ in pretrain(model.weights, model.spec, batches, settings):
        pass
    _write(base, target, to_checkpoint(model.weights, model.spec))


def randomised(base: Path, target: Path, seed: int) -> None:
    """A copy of the base whose matrices are normal numbers of the same spread."""
    rng = torch.Generator().manual_seed(seed)
    kept = load_file(base / "model.safetensors")
    drawn = {k: torch.randn(v.shape, generator=rng) * v.float().std() for k, v in kept.items() if v.ndim > 1}
    _write(base, target, kept | drawn)


def widened(base: Path, target: Path, width: int) -> None:
    """A copy of the base with wider hidden states: what is added is zero, and norms allow for it."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    more = width - config["hidden_size"]
    state = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        if "norm" in name:
            tensor = tensor.float() * (config["hidden_size"] / width) ** 0.5
        if any(part in name for part in ("norm", "o_proj", "down_proj")):  # numbers of a row come out
            tensor = F.pad(tensor, (0, more) if tensor.ndim == 1 else (0, 0, 0, more))
        elif tensor.ndim == 2:  # they go in
            tensor = F.pad(tensor, (0, more))
        state[name] = tensor
    _write(base, target, state)
    text = json.dumps(config | {"hidden_size": width}, indent=2)
    (target / "config.json").write_text(text, encoding="utf-8")


def _write(base: Path, target: Path, state: Mapping[str, Tensor]) -> None:
    """A copy of a model folder with other weights, in the numbers of the base."""
    shutil.copytree(base, target)
    dtype = next(iter(load_file(base / "model.safetensors").values())).dtype
    whole = {k: v.detach().to(dtype).contiguous().clone() for k, v in state.items()}
    save_file(whole, target / "model.safetensors", metadata={"format": "pt"})


def tune_adapter(base: Path, target: Path, batches: Iterable[Batch], steps: int) -> None:
    """Train LoRA on the queries and values of a base, and write it as PEFT does."""
    model = models.load(str(base))
    lora = Lora(model.spec, rank=RANK, alpha=2 * RANK, modules=("q_proj", "v_proj"))
    optimizer = torch.optim.AdamW([*lora], lr=100 * RATE, weight_decay=0.0)
    for batch in islice(batches, steps):
        scores_NV, gold_N = predict(model.weights, model.spec, batch, lora.adapt)
        optimizer.zero_grad()
        F.cross_entropy(scores_NV, gold_N).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    write_adapter(target, lora.adapter(target.name), model.spec)
