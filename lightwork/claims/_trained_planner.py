"""The planner whose accuracy is claimed: the built-in one, trained on with plans of depth 4 among the others.
Twenty CPU-minutes, once."""

from __future__ import annotations

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
SETTINGS = Settings(steps=6000, learning_rate=1e-3, warmup_steps=30)


def planner_folder() -> Path:
    """Where the planner is; trained now if it is not there."""
    return written_once("planner", train)


@one_thread()
def train(part: Path, settings: Settings = SETTINGS) -> None:
    spec, weights = start()
    for _ in pretrain(weights, spec, chats(), settings):
        pass
    save_model(part, weights, spec, words())


def chats() -> Lessons:
    """Half of all questions are of depth 4, the others of depth 1 to 3."""
    made = lessons("planner", BATCH)
    made.top = TOP
    return made


def start() -> tuple[ModelSpec, Weights]:
    """The built-in planner, in float32, to be trained."""
    folder = resolve(START)
    spec, written = read_spec(folder), Checkpoint(folder)
    weights = from_checkpoint(spec, lambda key, shape: written.get(key, shape).float())
    for tensor in weights.tensors():
        tensor.requires_grad_(True)
    return spec, weights
