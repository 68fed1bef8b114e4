"""Requests of eight fine-tunes at once, 78 million random weights that no cache holds: in blocks that they
share, and one model after the other.

The latter is the best that swapping can do: all requests are there at once, so each model is read once and
has all its requests in its batches. Adapters are served beside their base, which is read again for each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from lightwork import models
from lightwork.claims._random_llama import written_once
from lightwork.claims._variants import EIGHT, eight
from lightwork.decode.sampling import Sampling
from lightwork.kernels.rows import Rows
from lightwork.memory.kv import KVCache
from lightwork.models.compiled import CompiledModel
from lightwork.models.model import KVPool, Model
from lightwork.models.peft import read_adapter
from lightwork.models.spec import ModelSpec
from lightwork.models.zoo import gather
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.compositions.blocks import Blocks
from lightwork.serve.engine import Engine
from lightwork.serve.fleet import Fleet
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan, make_engine
from lightwork.serve.sequence import Request
from lightwork.serve.simulate import run_load
from lightwork.train.export import save_model
from lightwork.train.initial import initial_weights
from lightwork.train.pretrain import Batch
from lightwork.train.vocabulary import build_tokenizer

SPEC = ModelSpec(
    family="llama",
    vocab_size=2048,
    hidden_size=768,
    num_layers=12,
    num_heads=12,
    num_kv_heads=4,
    head_size=64,
    ffn_size=2048,
    max_len=2048,
)
ROUNDS = 3
EACH, PROMPT, OUTPUT = 4, 32, 32
"""Requests of each model, and their tokens."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Per round: seconds of one model after the other over those together; the same without reading models;
    of the compiled step over those together. batch: rows of a call of a shared block over those of one
    model.
    """

    swapped: list[float]
    resident: list[float]
    compiled: list[float]
    batch: float


@cache
def mixed_traffic() -> Traffic:
    top = written_once("fine-tunes-78m", _write)
    requests = _requests()
    plan = Plan(model=str(top / "base"), use=(Blocks(folder=str(top / "tuned")),), max_len=128)
    engine, model, _ = open_engine(replace(plan, prefix_cache=False), Kernel(WallClock()))
    assert isinstance(model, Model)
    steps = _watch(model)
    rounds = []
    for i in range(ROUNDS + 1):
        together_s = _timed(engine, requests)
        reading_s, serving_s = _one_by_one(top, requests)
        compiled_s = _compiled_s(top, requests)
        if i:  # the first one packs weights and warms caches
            rounds.append([s / together_s for s in (reading_s + serving_s, serving_s, compiled_s)])
    swapped, resident, compiled = (list(ratios) for ratios in zip(*rounds, strict=True))
    return Traffic(swapped, resident, compiled, _batch(top, steps))


def _write(top: Path) -> None:
    base = top / "base"
    save_model(base, initial_weights(SPEC, seed=0), SPEC, build_tokenizer([], []), torch.float32)

    def noise(i: int) -> Iterator[Batch]:
        rng = torch.Generator().manual_seed(i)
        while True:
            tokens = torch.randint(SPEC.vocab_size, (2, 64), generator=rng)
            at = torch.arange(64).expand(2, 64)
            yield Batch(tokens_BT=tokens, positions_BT=at, scored_BT=torch.ones(2, 64, dtype=torch.bool))

    eight(base, top / "tuned", noise, steps=2)


def _requests() -> list[Request]:
    rng, greedy = np.random.default_rng(0), Sampling(temperature=0.0)
    return [
        Request(
            prompt=tuple(rng.integers(0, SPEC.vocab_size, PROMPT).tolist()),
            max_tokens=OUTPUT,
            sampling=greedy,
            model=name,
        )
        for _ in range(EACH)
        for name in EIGHT
    ]


def _watch(model: Model) -> list[Counter[str]]:
    """Rows of each model in each step from now on."""
    steps: list[Counter[str]] = []
    hidden = model.hidden

    def counting(rows: Rows, kv: KVPool) -> torch.Tensor:
        step: Counter[str] = Counter()
        for name, num in zip(rows.models, np.bincount(rows.seqs).tolist(), strict=False):
            step[name] += num
        steps.append(step)
        return hidden(rows, kv)

    model.hidden = counting
    return steps


def _batch(top: Path, steps: Sequence[Counter[str]]) -> float:
    _, chains = gather(top / "base", {name: top / "tuned" / name for name in EIGHT})
    users = {i: {name for name in EIGHT if i in chains[name]} for i in chains[""]}

    def rows(of: set[str]) -> float:
        """Mean rows of a step that has any."""
        sums = [sum(step[name] for name in of) for step in steps]
        return fmean(filter(None, sums))

    shared = [rows(of) for of in users.values() if len(of) > 1]
    return fmean(shared) / fmean(rows({name}) for name in EIGHT)


def _timed(engine: Engine | Fleet, requests: Sequence[Request]) -> float:
    begin_s = engine.kernel.now()
    run_load(engine, [0.0] * len(requests), requests)
    return engine.kernel.now() - begin_s


def _one_by_one(top: Path, requests: Sequence[Request]) -> tuple[float, float]:
    """Seconds to read models, and to serve each its requests, by the same forward on as many threads."""
    reading_s = serving_s = 0.0
    for name in EIGHT:
        clock = WallClock()
        adapted = name.startswith("adapter")
        model = models.load(str(top / ("base" if adapted else f"tuned/{name}")))
        version = model.adapters.put(read_adapter(top / "tuned" / name, SPEC)) if adapted else ""
        reading_s += clock.now()
        kernel, kv = Kernel(WallClock()), KVCache(256, 16, prefix_cache=False)
        engine = make_engine(Plan(), kernel, kv, LocalRunner(kernel, model, kv), 128, SPEC.vocab_size)
        serving_s += _timed(engine, [replace(r, model=version) for r in requests if r.model == name])
    return reading_s, serving_s


def _compiled_s(top: Path, requests: Sequence[Request]) -> float:
    """Seconds to serve models one after the other by the compiled step, none of reading."""
    seconds = 0.0
    for name in EIGHT:
        adapted = name.startswith("adapter")
        plan = Plan(
            model=str(top / ("base" if adapted else f"tuned/{name}")), max_len=128, prefix_cache=False
        )
        engine, model, _ = open_engine(plan, Kernel(WallClock()))
        assert isinstance(model, CompiledModel)
        model.warm_up()
        version = ""
        if adapted:
            version = model.adapters.put(read_adapter(top / "tuned" / name, SPEC))
        seconds += _timed(engine, [replace(r, model=version) for r in requests if r.model == name])
        model.close()
    return seconds
