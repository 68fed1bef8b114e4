"""Two planners in turns, from one another's twins: the built-in planner's weights, then the same questions,
told in serial turns to the one and in layered turns to the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Literal

import torch
from tokenizers import Tokenizer

from lightwork.agents.dependencies import Provenance
from lightwork.agents.layering import Rejected, layered
from lightwork.agents.trajectories import Trajectory
from lightwork.agents.worlds.plan_world import SYLLABLES, PlanWorld
from lightwork.agents.worlds.turns import WORDS, Comparisons, TurnLessons
from lightwork.claims._chats import one_thread
from lightwork.claims._random_llama import written_once
from lightwork.models import resolve
from lightwork.models.checkpoint import Checkpoint
from lightwork.models.spec import ModelSpec, read_spec
from lightwork.models.weights import Weights, from_checkpoint
from lightwork.runtime.kernel import Kernel
from lightwork.train.export import save_model
from lightwork.train.initial import STD
from lightwork.train.pretrain import Settings, pretrain
from lightwork.train.vocabulary import build_tokenizer

Form = Literal["serial", "layered"]
SETTINGS = Settings(steps=600, learning_rate=1.5e-3, warmup_steps=30)


def convert(trajectory: Trajectory) -> Trajectory | None:
    """Layered; None if it is rejected."""
    found = Kernel().run(layered(trajectory, Provenance()))
    return None if isinstance(found, Rejected) else found


def kept(trajectory: Trajectory) -> Trajectory | None:
    """Serial as it is, if it can be layered: both planners learn the same questions."""
    return None if convert(trajectory) is None else trajectory


def planner_folder(form: Form) -> Path:
    """Where the planner of this form is; trained now if it is not there."""
    return written_once(f"dta-{form}", lambda part: train(form, part))


@one_thread()
def train(form: Form, part: Path, settings: Settings = SETTINGS, told: bool = False) -> None:
    spec, weights, tokenizer = start()
    lessons = TurnLessons(
        tokenizer=tokenizer,
        rng=Random("turns"),
        world=Comparisons(world=PlanWorld(split="train")),
        convert=convert if form == "layered" else kept,
    )
    for progress in pretrain(weights, spec, lessons, settings):
        if told and progress.step % 20 == 0:
            print(form, progress.step, round(progress.loss, 4), flush=True)
    save_model(part, weights, spec, tokenizer)


def start() -> tuple[ModelSpec, Weights, Tokenizer]:
    """The built-in planner, with a row for each new token."""
    folder = resolve("tiny:llama")
    spec, tokenizer = read_spec(folder), build_tokenizer(WORDS, SYLLABLES)
    written = Checkpoint(folder)
    weights = from_checkpoint(spec, lambda key, shape: written.get(key, shape).float())
    num_new = tokenizer.get_vocab_size() - spec.vocab_size
    new = torch.empty(num_new, spec.hidden_size).normal_(0.0, STD, generator=torch.Generator().manual_seed(0))
    weights.embed = weights.head = torch.cat((weights.embed, new))
    for tensor in weights.tensors():
        tensor.requires_grad_(True)
    return replace(spec, vocab_size=spec.vocab_size + num_new), weights, tokenizer
