"""How long steps of so many rows take on this machine, measured once before serving.

What is decided by it while serving never depends on a clock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from lightwork.cluster.devices import Curve, interpolate
from lightwork.memory.kv import KVCache
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.engine import Engine
from lightwork.serve.loads import Arrival
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.replay import samples
from lightwork.serve.schedulers import Step
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Limits
from lightwork.serve.simulate import SyntheticRequests, run_load

SIZES = (1, 2, 4, 8, 16, 32, 64)
PROMPT, OUTPUT = 2, 8


@dataclass(frozen=True, slots=True)
class RowTimes:
    """curve: (rows, seconds), neither ever falling; goes on beyond its end as it ended."""

    curve: Curve

    def predict(self, step: Step) -> float:
        rows = step.num_rows
        (before, before_s), (most, most_s) = self.curve[-2:]
        if rows <= most:
            return interpolate(self.curve, rows)
        return most_s + (rows - most) * (most_s - before_s) / (most - before)


def measure_rows(model: Any, block_size: int) -> RowTimes:
    """As many requests decode together as there are rows; takes as long as some fifty steps.

    model: a `Model` or a `CompiledModel`.
    """
    curve: list[tuple[float, float]] = []
    for rows in SIZES:
        kernel = Kernel(WallClock(), trace=Trace("rows"))
        kv = KVCache(rows * (1 + (PROMPT + OUTPUT) // block_size), block_size, prefix_cache=False)
        limits, vocab_size = Limits(max_len=PROMPT + OUTPUT), model.spec.vocab_size
        engine = Engine(kernel, LocalRunner(kernel, model, kv), kv, Sarathi(), limits=limits)
        arrivals = [Arrival(0.0, PROMPT, OUTPUT)] * rows
        run_load(engine, arrivals, SyntheticRequests(arrivals, vocab_size, np.random.default_rng(0)))
        assert kernel.trace is not None
        curve.append((rows, max(_decode_s(kernel.trace.spans, rows), curve[-1][1] if curve else 0.0)))
    return RowTimes(tuple(curve))


def _decode_s(spans: Iterable[Span], rows: int) -> float:
    took = defaultdict(list)
    for features, seconds in samples(spans):
        took[features["rows"], features["sequences"]].append(seconds)
    return median(took[rows, rows])
