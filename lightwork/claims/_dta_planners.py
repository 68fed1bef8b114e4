"""Two planners that act in turns: both begin as the built-in planner and learn the same questions, one from
serial trajectories, the other from the layered ones made of them. Eleven CPU-minutes together, once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Literal

import torch
from tokenizers import Tokenizer

from lightwork.agents.chat_model import ChatModel
from lightwork.agents.context import Budget, Context, Result
from lightwork.agents.dependencies import Provenance
from lightwork.agents.engine_model import open_model
from lightwork.agents.layering import Rejected, layered
from lightwork.agents.programs.dta import Dta
from lightwork.agents.tool import Toolbox
from lightwork.agents.trajectories import Trajectory
from lightwork.agents.world_tools import world_tools
from lightwork.agents.worlds import Episode
from lightwork.agents.worlds.plan_world import SYLLABLES, PlanWorld
from lightwork.agents.worlds.turns import LEVELS, WORDS, Comparisons, TurnLessons, serial
from lightwork.claims._chats import one_thread
from lightwork.claims._random_llama import written_once
from lightwork.models import resolve
from lightwork.models.checkpoint import Checkpoint
from lightwork.models.spec import ModelSpec, read_spec
from lightwork.models.weights import Weights, from_checkpoint
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.train.export import save_model
from lightwork.train.initial import STD
from lightwork.train.pretrain import Settings, pretrain
from lightwork.train.vocabulary import build_tokenizer

Form = Literal["serial", "layered"]
QUESTIONS, TURNS = 400, 16
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
def train(form: Form, part: Path) -> None:
    spec, weights, tokenizer = start()
    lessons = TurnLessons(
        tokenizer=tokenizer,
        rng=Random("turns"),
        world=Comparisons(world=PlanWorld(split="train")),
        convert=convert if form == "layered" else kept,
    )
    for _ in pretrain(weights, spec, lessons, SETTINGS):
        pass
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


@dataclass(frozen=True, slots=True)
class Asking:
    """Questions put to a planner: those right, turns, tokens read and written, of all together."""

    questions: int
    right: int
    turns: int
    tokens: int


@cache
@one_thread()
def asked(form: Form, seed: int, questions: int = QUESTIONS) -> Asking:
    """Questions about tools that training never named, half of either level, in this planner's turns."""
    rng, world = Random(f"asked {seed}"), Comparisons(world=PlanWorld(split="heldout"))
    some = [world.sample(rng, LEVELS[i % len(LEVELS)]) for i in range(questions)]
    kernel = Kernel(WallClock(), seed=seed)
    model = open_model(str(planner_folder(form)), kernel)

    async def main() -> list[Result]:
        return await kernel.gather(*(kernel.spawn(answer(kernel, model, one)) for one in some))

    try:
        results = kernel.run(main())
    finally:
        model.close()
    return Asking(
        questions,
        sum(result.answer == serial(one).answer for result, one in zip(results, some, strict=True)),
        sum(result.turns for result in results),
        sum(result.usage.prompt + result.usage.completion for result in results),
    )


async def answer(kernel: Kernel, model: ChatModel, one: Episode) -> Result:
    toolbox, budget = Toolbox.of(kernel, world_tools(one)), Budget(turns=TURNS)
    return await Dta().run(Context(kernel, {"": model}, toolbox, budget, trained=True), one.question)
