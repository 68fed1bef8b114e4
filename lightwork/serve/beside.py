"""Training beside an engine of this machine: who computes it, and how long steps take with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from lightwork.memory.kv import KVCache
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.cost import CalibratedCost
from lightwork.serve.engine import Engine
from lightwork.serve.loads import Arrival
from lightwork.serve.plan import Setting
from lightwork.serve.replay import calibrate
from lightwork.serve.runner import Runner
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Limits
from lightwork.serve.simulate import SyntheticRequests, run_load
from lightwork.serve.simulated_runner import StepCost
from lightwork.serve.training import Slice, Trainer, Training
from lightwork.serve.training_cost import TrainingCost
from lightwork.serve.training_runner import TrainingRunner

SMALL, LARGE, TIMES = 8, 64, 3
"""Tokens of the windows that are timed, and how often."""


def train_beside(
    tuning: Any, runner: Runner, kernel: Kernel, model: Any, kv: KVCache
) -> tuple[TrainingRunner, dict[str, Any], list[Setting]]:
    """The runner that trains too, what its engine takes, and what was derived.

    tuning: a `Tuning`. runner: of the model, which is a `Model` or a `CompiledModel`.
    """
    trainer = tuning.begin(model, model.spec.max_len)
    training = Training(trainer.lengths, trainer.num_layers)
    cost = measured(trainer, type(runner), model, kv.block_size)
    settings = [
        Setting(
            "training", f"{len(trainer.lengths)} sequences", f"{sum(trainer.lengths)} tokens of {tuning.data}"
        ),
        Setting(
            "training_s",
            f"{(cost.forward[1] + cost.back[1]) * trainer.num_layers + cost.head[1]:.2g} a token",
            "measured",
        ),
    ]
    beside = {"training": training, "predict": cost.predict}
    return TrainingRunner(kernel, runner, trainer, training, cost), beside, settings


def measured(
    trainer: Trainer, make_runner: Callable[[Kernel, Any, KVCache], Runner], model: Any, block_size: int
) -> TrainingCost:
    """What steps cost here, from a few of them, which takes as long as a hundred."""
    kernel = Kernel(WallClock())
    spec, length = model.spec, SMALL + LARGE
    took: dict[tuple[str, int, bool], list[float]] = defaultdict(list)
    for _ in range(TIMES):
        compute, way = trainer.rehearsal(length), Training([length], spec.num_layers)
        for stage in range(2 * spec.num_layers + 1):
            what = "head" if stage == spec.num_layers else "back" if stage > spec.num_layers else "forward"
            sizes = (SMALL, LARGE) if stage % 2 else (LARGE, SMALL)
            for count in sizes:
                (piece,) = way.ahead(count)
                comes = what != "head" and count == sizes[0]
                took[what, count, comes].append(_seconds(kernel, compute, piece))
                way.move([piece])
    kinds = ("forward", "back", "head")
    lines = {what: _line(took[what, SMALL, False], took[what, LARGE, False]) for what in kinds}
    comes_s = [
        s - lines[what][0] - lines[what][1] * count
        for (what, count, comes), times in took.items()
        if comes
        for s in times
    ]
    rows = _rows_cost(make_runner, model, block_size)
    layer_s = max(0.0, float(np.median(comes_s)))
    forward, back, head = (lines[what] for what in kinds)
    return TrainingCost(
        rows=rows, num_layers=spec.num_layers, layer_s=layer_s, forward=forward, back=back, head=head
    )


def _seconds(kernel: Kernel, compute: Callable[[Slice], object], piece: Slice) -> float:
    begin_s = kernel.now()
    compute(piece)
    return kernel.now() - begin_s


def _line(small_s: list[float], large_s: list[float]) -> tuple[float, float]:
    """Seconds of any window, and more per token."""
    few, many = float(np.median(small_s)), float(np.median(large_s))
    slope = max(0.0, (many - few) / (LARGE - SMALL))
    return max(0.0, few - SMALL * slope), slope


def _rows_cost(
    make_runner: Callable[[Kernel, Any, KVCache], Runner], model: Any, block_size: int
) -> StepCost:
    """A dozen requests that come one after the other, and are served together."""
    kernel = Kernel(WallClock(), trace=Trace("calibration"))
    spec = model.spec
    longest = min(spec.max_len, 512)
    lengths = [max(1, longest * (i % 4 + 1) // 8) for i in range(12)]
    kv = KVCache(sum(-(-(n + 16) // block_size) for n in lengths), block_size, prefix_cache=False)
    engine = Engine(
        kernel,
        make_runner(kernel, model, kv),
        kv,
        Sarathi(),
        limits=Limits(max_len=spec.max_len),
        vocab_size=spec.vocab_size,
    )
    arrivals = [Arrival(0.0, n, 8 + i, after=i - 4 if i >= 4 else None) for i, n in enumerate(lengths)]
    run_load(engine, arrivals, SyntheticRequests(arrivals, spec.vocab_size, np.random.default_rng(0)))
    assert kernel.trace is not None
    return CalibratedCost(calibrate(kernel.trace.spans))
