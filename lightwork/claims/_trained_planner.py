"""The planner whose accuracy is claimed: the built-in one, trained on with plans of depth 4 among the others.
Half an hour of CPU, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lightwork.agents.worlds.lessons import Lessons
from lightwork.claims._chats import lessons, one_thread, words
from lightwork.claims._random_llama import written_once
from lightwork.models import resolve
from lightwork.models.checkpoint import Checkpoint
from lightwork.models.spec import ModelSpec, read_spec
from lightwork.models.weights import Weights, from_checkpoint
from lightwork.train.export import save_model
from lightwork.train.pretrain import Settings, pretrain

START, TOP, BATCH = "tiny:llama", 4, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """shared: the share of questions that are chosen to have equal calls."""

    settings: Settings
    shared: float = 0.0


PHASES = (
    Phase(settings=Settings(steps=6000, stop=2000, learning_rate=1e-3, warmup_steps=30)),
    Phase(settings=Settings(steps=2400, learning_rate=1e-3, warmup_steps=20), shared=0.5),
    Phase(settings=Settings(steps=4500, learning_rate=1e-3, warmup_steps=20), shared=0.25),
)
"""What the first phase leaves wrong at depth 2 and 3 is mostly questions with equal calls, which are few."""


def planner_folder() -> Path:
    """Where the planner is; trained now if it is not there."""
    return written_once("planner", train)


@one_thread()
def train(part: Path, phases: Sequence[Phase] = PHASES) -> None:
    spec, weights = start()
    for i, phase in enumerate(phases):
        for _ in pretrain(weights, spec, chats(i, phase.shared), phase.settings):
            pass
    save_model(part, weights, spec, words())


def chats(phase: int, shared: float) -> Lessons:
    """Half of all questions are of depth 4, the others of depth 1 to 3."""
    made = lessons(f"planner {phase}" if phase else "planner", BATCH)
    made.top, made.world = TOP, replace(made.world, shared=shared)
    return made


def start() -> tuple[ModelSpec, Weights]:
    """The built-in planner, in float32, to be trained."""
    folder = resolve(START)
    spec, written = read_spec(folder), Checkpoint(folder)
    weights = from_checkpoint(spec, lambda key, shape: written.get(key, shape).float())
    for tensor in weights.tensors():
        tensor.requires_grad_(True)
    return spec, weights
