"""The planner whose accuracy is claimed: the built-in one, trained on with plans of depth 4 among the others.
Forty minutes of CPU, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lightwork.agents.worlds.lessons import Lessons
from lightwork.agents.worlds.plan_world import RELATED
from lightwork.claims._chats import lessons, one_thread, words
from lightwork.claims._random_llama import written_once
from lightwork.models import resolve
from lightwork.models.checkpoint import Checkpoint
from lightwork.models.spec import ModelSpec, read_spec
from lightwork.models.weights import Weights, from_checkpoint
from lightwork.train.export import save_model
from lightwork.train.pretrain import Settings, pretrain

START, BATCH = "tiny:llama", 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """shared, related: of its questions, as PlanWorld has them. odds: of each depth, in proportion."""

    settings: Settings
    shared: float = 0.0
    related: float = RELATED
    odds: tuple[int, ...] = (1, 1, 1, 3)


PHASES = (
    Phase(settings=Settings(steps=6000, stop=2000, learning_rate=1e-3, warmup_steps=30)),
    Phase(settings=Settings(steps=2400, learning_rate=1e-3, warmup_steps=20), shared=0.5),
    Phase(settings=Settings(steps=4500, learning_rate=1e-3, warmup_steps=20), shared=0.25),
    Phase(settings=Settings(steps=3200, learning_rate=1e-3, warmup_steps=20), related=0.8, odds=(1, 1, 3, 2)),
)
"""What the first phase leaves wrong at depth 2 and 3 is mostly questions with equal calls, which are few.
What three leave wrong is nearly all in questions that name an entity twice: which of two calls is meant,
where a side of an operation repeats a part of the other."""


def planner_folder() -> Path:
    """Where the planner is; trained now if it is not there."""
    return written_once("planner", train)


@one_thread()
def train(part: Path, phases: Sequence[Phase] = PHASES) -> None:
    spec, weights = start()
    for i, phase in enumerate(phases):
        for _ in pretrain(weights, spec, chats(i, phase), phase.settings):
            pass
    save_model(part, weights, spec, words())


def chats(number: int, phase: Phase) -> Lessons:
    made = lessons(f"planner {number}" if number else "planner", BATCH)
    made.odds = phase.odds
    made.world = replace(made.world, shared=phase.shared, related=phase.related)
    return made


def start() -> tuple[ModelSpec, Weights]:
    """The built-in planner, in float32, to be trained."""
    folder = resolve(START)
    spec, written = read_spec(folder), Checkpoint(folder)
    weights = from_checkpoint(spec, lambda key, shape: written.get(key, shape).float())
    for tensor in weights.tensors():
        tensor.requires_grad_(True)
    return spec, weights
