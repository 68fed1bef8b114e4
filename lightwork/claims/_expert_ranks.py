"""The trained model of experts on processes of this machine, and in one, generating the same texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np
from torch import Tensor

from lightwork import models
from lightwork.claims._chats import one_thread
from lightwork.claims._moe import EXPERTS, LAYERS, STEPS, folder, routes, texts
from lightwork.kernels.rows import Rows
from lightwork.models.model import Model
from lightwork.models.routing import Affinity, Recorder, RoutingTrace
from lightwork.parallel.expert_dispatch import ExpertDispatch, Traffic
from lightwork.parallel.expert_placement import ExpertPlacement
from lightwork.parallel.expert_shard import BLOCK, generate
from lightwork.parallel.processes import run_processes
from lightwork.plan.place_experts import distances, place
from lightwork.runtime.trace import Trace

RANKS = 4
TOKENS = 5000
"""That experts are placed by, and as many others that placements are judged on."""
TEXTS, PROMPT, OUTPUT = 12, 24, 16
Logits = dict[tuple[int, int], Tensor]
"""[V] each, by (sequence, position): of prompts' last tokens and of all that follow."""


def row_by_row(model: Model, prompts: Sequence[Sequence[int]], num_steps: int) -> Logits:
    """Greedy continuations, one token of one sequence at a time."""
    found: Logits = {}
    num_blocks = -(-(max(map(len, prompts)) + num_steps) // BLOCK)
    for seq, prompt in enumerate(prompts):
        kv, tokens = model.new_kv(num_blocks, BLOCK), [*prompt]
        for at in range(len(prompt) + num_steps):
            rows = Rows(
                tokens=np.array(tokens[at : at + 1]),
                positions=np.array([at]),
                slots=np.array([at]),
                seqs=np.zeros(1, np.int32),
                index=np.array([at]),
                ancestors=np.zeros(1, np.uint64),
                known=np.array([at + 1]),
                tables=np.arange(num_blocks, dtype=np.int32)[None],
                scored=np.zeros(1, np.int64),
            )
            logits_V = model.forward(rows, kv)[0]
            if at >= len(prompt) - 1:
                found[seq, at] = logits_V
                tokens.append(int(logits_V.argmax()))
    return found


@cache
def placing(seed: int, step: int = STEPS) -> RoutingTrace:
    """Of texts like those that the model was trained on, after so many steps of training."""
    return routes(folder(step=step), texts(f"placed {seed}", "train"), TOKENS)


@cache
def judged(seed: int, step: int = STEPS) -> RoutingTrace:
    """Of texts whose tools have names that no training text has."""
    return routes(folder(step=step), texts(f"judged {seed}"), TOKENS)


def placed(trace: RoutingTrace, num_ranks: int = RANKS) -> ExpertPlacement:
    return place(Affinity.of(trace), distances(num_ranks))


def random_placement(rng: np.random.Generator) -> ExpertPlacement:
    dealt = np.repeat(np.arange(RANKS), EXPERTS // RANKS)
    return ExpertPlacement(rank_LE=np.stack([rng.permutation(dealt) for _ in range(LAYERS)]), num_ranks=RANKS)


def prompts(seed: int) -> list[tuple[int, ...]]:
    """Of different lengths."""
    return [tuple(text[: PROMPT + i]) for i, text in enumerate(islice(texts(f"asked {seed}"), TEXTS))]


@cache
@one_thread()
def alone(seed: int) -> tuple[Logits, RoutingTrace]:
    """In one process; the trace is of generated tokens only, but for the last of each text."""
    model, recorder, asked = models.load(str(folder())), Recorder(), prompts(seed)
    model.routed = recorder
    found = row_by_row(model, asked, OUTPUT)
    ends = np.cumsum([len(prompt) + OUTPUT for prompt in asked])
    rows = (ends[:, None] - OUTPUT + np.arange(OUTPUT)).reshape(-1)
    return found, recorder.trace().of(rows)


@dataclass(frozen=True, slots=True)
class Run:
    """logits: of all ranks. traffic: of the steps behind the prompts."""

    logits: Logits
    traffic: Traffic


@cache
def together(seed: int, *, return_home: bool) -> Run:
    """On RANKS processes, with experts placed by affinity."""
    dispatch = ExpertDispatch(placement=placed(placing(seed)), return_home=return_home)
    whole, prompted = (_on_processes(dispatch, seed, num_steps) for num_steps in (OUTPUT, 0))
    behind = (a - b for a, b in zip(whole.traffic, prompted.traffic, strict=True))
    return Run(whole.logits, Traffic(*behind))


def _on_processes(dispatch: ExpertDispatch, seed: int, num_steps: int) -> Run:
    trace = Trace("real")
    parts = run_processes(generate, RANKS, str(folder()), dispatch, prompts(seed), num_steps, trace=trace)
    logits = {key: value for part in parts for key, value in part.items()}
    return Run(logits, Traffic.of(trace.spans, RANKS))
