"""The planner whose accuracy is claimed: the built-in one, with a third more layers, trained on with plans of
depth 4 among the others. Forty minutes of CPU, once."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from lightwork.agents.worlds.lessons import Lessons
from lightwork.agents.worlds.plan_world import PlanWorld
from lightwork.claims._chats import lessons, one_thread, words
from lightwork.claims._random_llama import written_once
from lightwork.models import resolve
from lightwork.models.checkpoint import Checkpoint
from lightwork.models.spec import ModelSpec, read_spec
from lightwork.models.weights import Layer, Weights, from_checkpoint
from lightwork.train.export import save_model
from lightwork.train.pretrain import Settings, pretrain

START, BATCH = "tiny:llama", 4
AFTER = (3, 5, 7)
"""The layers that another one is put behind."""
ODDS = (1, 1, 2, 3)
"""How often questions of each depth are asked, in proportion."""
CROWDED = 0.5
"""What the built-in planner has wrong is nearly all in questions that name an entity more than once. Of those
that are drawn, calls with the same entity are mostly equal; half are drawn so that they are as often not."""
SETTINGS = Settings(steps=8000, learning_rate=1e-3, warmup_steps=20)


def planner_folder() -> Path:
    """Where the planner is; trained now if it is not there."""
    return written_once("planner", train)


@one_thread()
def train(folder: Path, settings: Settings = SETTINGS) -> None:
    spec, weights = start()
    for _ in pretrain(weights, spec, chats(), settings):
        pass
    save_model(folder, weights, spec, words())


def chats() -> Lessons:
    made = lessons("planner", BATCH)
    made.odds, made.world = ODDS, PlanWorld(crowded=CROWDED)
    return made


def start() -> tuple[ModelSpec, Weights]:
    """The built-in planner, in float32, to be trained. The layers that are new change nothing yet."""
    folder = resolve(START)
    spec, written = read_spec(folder), Checkpoint(folder)
    weights = from_checkpoint(spec, lambda key, shape: written.get(key, shape).float())
    weights.layers = [*_grown(weights.layers)]
    for tensor in weights.tensors():
        tensor.requires_grad_(True)
    return replace(spec, num_layers=len(weights.layers)), weights


def _grown(layers: list[Layer]) -> Iterator[Layer]:
    for i, layer in enumerate(layers):
        yield layer
        if i in AFTER:
            new = deepcopy(layer)
            for said in (new.out, new.out_bias, new.down, new.down_bias):
                if said is not None:
                    said.zero_()
            yield new
