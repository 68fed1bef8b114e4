"""The planner whose accuracy is claimed: the built-in one with a third more layers, trained on.

Half an hour of CPU, once.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lightwork.agents.worlds.lessons import Lessons
from lightwork.agents.worlds.plan_world import SYLLABLES, PlanWorld
from lightwork.claims._chats import lessons, one_thread, words
from lightwork.claims._random_llama import written_once
from lightwork.models import resolve
from lightwork.models.checkpoint import Checkpoint
from lightwork.models.spec import ModelSpec, read_spec
from lightwork.models.weights import Layer, Weights, from_checkpoint
from lightwork.train.export import save_model
from lightwork.train.pretrain import Batch, Settings, pretrain

START, BATCH = "tiny:llama", 4
AFTER = (3, 5, 7)
"""The layers that another one is put behind."""
ODDS = (1, 1, 3, 2)
"""How often questions of each depth are asked, in proportion."""
SHARING = 0.7
"""What the built-in planner has wrong is nearly all in questions that name an entity twice, a third of those
of depth 3. In most of them one side of an operation repeats a part of the other."""
SETTINGS = Settings(steps=7500, learning_rate=1e-3, warmup_steps=20)


def planner_folder() -> Path:
    """Where the planner is; trained now if it is not there."""
    return written_once("planner", train)


@one_thread()
def train(folder: Path, settings: Settings = SETTINGS) -> None:
    spec, weights = start()
    with closing(shaken(chats(), weights.embed)) as batches:
        for _ in pretrain(weights, spec, batches, settings):
            pass
    save_model(folder, weights, spec, words())


def chats() -> Lessons:
    made = lessons("exp M", BATCH)  # only a name: other draws would do
    made.odds, made.world = ODDS, PlanWorld(sharing=SHARING)
    return made


def shaken(batches: Iterable[Batch], embed_Vd: Tensor) -> Generator[Batch, None, None]:
    """Each batch while the embeddings of all syllables have noise of their size: so new names are copied, and
    found again, as those are that were seen."""
    rng = torch.Generator().manual_seed(1)
    rows = torch.tensor(
        sorted(i for token, i in words().get_vocab().items() if token.strip("Ġ") in SYLLABLES)
    )
    size = (len(rows), embed_Vd.shape[1])
    scale = float(embed_Vd[rows].detach().square().mean().sqrt())
    for batch in batches:
        noise = scale * torch.randn(size, generator=rng)
        with torch.no_grad():
            embed_Vd[rows] += noise
        try:
            yield batch
        finally:
            with torch.no_grad():
                embed_Vd[rows] -= noise


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
