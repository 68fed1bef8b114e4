"""What does a step cost beside its forward? 16 decoding sequences, a choice of 32,000, a free forward.

The bar: 150 µs of Python from one forward to the next. Choosing is not Python: it goes over 2 MB of logits,
in numpy or compiled, and is told apart. The period is taken in runs of their own, with one clock reading per
step; the parts are taken in others, where every boundary reads the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
from _report import report
from numpy.typing import NDArray

from lightwork.decode.sampling import Pick, Sampling
from lightwork.kernels.rows import Rows
from lightwork.memory.kv import KVCache
from lightwork.models.presets import preset
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.engine import Engine
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.schedulers import Step, View
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import FinishReason, Limits, Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load

SEQS, VOCABULARY, STEPS, BAR_US = 16, 32_000, 600, 150.0
GREEDY = Sampling(temperature=0.0)

Mark = Callable[[str], None]
"""The named part of a step ends now."""


class Marks:
    """Seconds between marks, by the name of the later one. A step begins at "rows and start"."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._last_s = now()
        self._steps: list[dict[str, float]] = [{}]

    def __call__(self, part: str) -> None:
        now_s = self._now()
        if part == "rows and start":
            self._steps.append({})
        step = self._steps[-1]
        step[part] = step.get(part, 0.0) + now_s - self._last_s
        self._last_s = now_s

    def medians_us(self) -> dict[str, float]:
        steps = self._steps[SEQS : STEPS - SEQS]
        return {
            part: round(1e6 * median(s.get(part, 0.0) for s in steps), 1)
            for part in self._steps[len(self._steps) // 2]
        }


class FreeModel:
    """A model whose forward takes no time."""

    spec = preset("llama-3-8b")
    shared_keys = ()

    def __init__(self, now: Callable[[], float], mark: Mark | None) -> None:
        self.begun_s: list[float] = []
        self._now = now
        self._mark = mark
        rng = np.random.default_rng(0)
        self._logits = [rng.normal(0, 3, (SEQS, VOCABULARY)).astype(np.float32) for _ in range(3)]

    def new_kv(self, num_blocks: int, block_size: int, shared: None = None) -> None: ...

    def logits(self, rows: Rows, kv: None) -> NDArray[np.float32]:
        if self._mark:
            self._mark("rows and start")
        self.begun_s.append(self._now())
        return self._logits[len(self.begun_s) % len(self._logits)][: len(rows.scored)]


class MarkedScheduler:
    """Sarathi, timed."""

    def __init__(self, mark: Mark) -> None:
        self._inner = Sarathi(chunk=1 << 20)
        self._mark = mark

    def init(self) -> None:
        return None

    def plan(self, state: None, view: View) -> Step:
        self._mark("trace and loop")
        step = self._inner.plan(state, view)
        self._mark("plan")
        return step


class MarkedEngine(Engine):
    """The engine, timed where its parts meet."""

    mark: Mark

    def _apply(self, step: Step) -> None:
        super()._apply(step)
        self.mark("checks and reserve")

    def _commit(self, step: Step, i: int, scores: Any) -> int:
        if i == 0:
            self.mark("choose")
        emitted = super()._commit(step, i, scores)
        self.mark("commit")
        return emitted


class Collect:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.picks: list[Pick] = []

    def prompt(self, seq: Seq, picks: Sequence[Pick]) -> None: ...

    def tokens(self, seq: Seq, picks: Sequence[Pick]) -> int | None:
        self.picks.extend(picks)
        return None

    def finish(self, seq: Seq, reason: FinishReason, error: Exception | None) -> None: ...


def serve(how: Sampling, *, marked: bool) -> tuple[float, dict[str, float]]:
    """Microseconds from one forward to the next, median, and by part."""
    kernel = Kernel(WallClock(), trace=Trace("real", keep=10_000))
    kv = KVCache(8192, 16)
    marks = Marks(kernel.now)
    model: Any = FreeModel(kernel.now, marks if marked else None)
    runner = LocalRunner(kernel, model, kv)
    limits = Limits(max_len=10_000)
    if marked:
        engine: Engine = MarkedEngine(
            kernel, runner, kv, MarkedScheduler(marks), limits=limits, vocab_size=VOCABULARY
        )
        engine.mark = marks  # type: ignore[attr-defined]
    else:
        engine = Engine(kernel, runner, kv, Sarathi(chunk=1 << 20), limits=limits, vocab_size=VOCABULARY)
    rng = kernel.rng("prompts")
    requests = [
        Request(prompt=tuple(rng.integers(0, VOCABULARY, n).tolist()), max_tokens=STEPS, sampling=how)
        for n in np.linspace(200, 2000, SEQS).astype(int)
    ]
    run_load(engine, [0.0] * SEQS, requests, [Collect() for _ in requests])
    gaps_s = np.diff(model.begun_s)[SEQS : STEPS - SEQS]
    return 1e6 * float(np.median(gaps_s)), marks.medians_us()


def main() -> None:
    for name, how in (("greedy", GREEDY), ("sampled", Sampling(seed=1))):
        periods_us = [serve(how, marked=False)[0] for _ in range(3)]
        parts_us = serve(how, marked=True)[1]
        python_us = round(sum(parts_us.values()) - parts_us["choose"], 1)  # reading the clock included
        report(
            "step_overhead",
            tokens=name,
            python_us=python_us,
            period_us=round(min(periods_us), 1),
            periods_us=[round(p, 1) for p in periods_us],
            **{f"{part.replace(' ', '_')}_us": us for part, us in parts_us.items()},
            bar_us=BAR_US,
            holds=python_us <= BAR_US,
        )


if __name__ == "__main__":
    main()
