"""The engine's settings for this model, this machine and this load, measured.

What "The Impact of Hyperparameters on Large Language Model Inference Performance" (2024) found is acted upon:
the best settings of one machine are not those of the next, and defaults are rarely either. Every setting is
predicted first, by a simulation whose step times are fitted to runs of this machine; a few settings far apart
are measured, then the most promising, whose figures correct the predictions of their neighbours; those ahead
are measured again, beside the default in the same period. A gain within the noise keeps the default.
The model is loaded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from math import inf
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from lightwork.cluster.calibration import Calibration
from lightwork.errors import LightworkError, RangeError, SpecError
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.cost import CalibratedCost
from lightwork.serve.engine import Engine
from lightwork.serve.loads import Load
from lightwork.serve.metrics import Meter, Slo, Summary
from lightwork.serve.opening import open_one, own_cores, runner_for
from lightwork.serve.plan import Plan, make_engine, make_kv
from lightwork.serve.replay import calibrate
from lightwork.serve.runner import Runner
from lightwork.serve.schedulers import Scheduler
from lightwork.serve.schedulers.prefill_first import PrefillFirst
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.simulate import SyntheticRequests, run_load
from lightwork.serve.simulated_runner import SimulatedRunner

MAX_SEQS = (1, 2, 4, 8, 16, 32, 64, 128)
THREADS = (1, 2, 4, 8, 16, 32, 64)
POWERS = range(-4, 3)
"""A number of a scheduler is tried at its default times two to these."""
SPREAD, PROMISING, ROUNDS = 3, 4, 2
"""Settings measured far from others; promising ones in each round, whose figures correct the next one's."""
FINALISTS, TURNS = 3, 3
"""Those ahead then, each measured so many times in turn with the default."""


class Setting(NamedTuple):
    """What can be changed without loading the model again."""

    scheduler: Scheduler[Any]
    max_seqs: int
    threads: int


@dataclass(slots=True, kw_only=True)
class Trial:
    """One setting. predicted: its figure, simulated. measured: its figures; ratios: over the default,
    measured beside it. why: it cannot be, if so."""

    setting: Setting
    predicted: float = 0.0
    measured: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    why: str = ""

    @property
    def ratio(self) -> float:
        return median(self.ratios) if self.ratios else 0.0


class Curve(NamedTuple):
    """One axis, all else as in the best: what each value comes to (measured, else predicted), and how many
    values are better than both neighbours by more than noise."""

    name: str
    points: list[tuple[str, float, bool]]
    peaks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """best: the default itself if nothing was ahead of it beyond noise. noise: half the spread of the
    default's own figures, relative. runs: that were measured."""

    best: Trial
    default: Trial
    trials: list[Trial]
    curves: list[Curve]
    noise: float
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What is tuned, and for what: output tokens/s, or requests in time per second if something is promised.

    plan: one with a scheduler has that one's numbers tuned, else all are tried.
    """

    plan: Plan
    load: Load
    slo: Slo | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.plan.on.startswith(("sim:", "ray:")) or "router" in self.plan.techniques():
            raise SpecError(
                f"{self.plan.on} is not measured",
                expected="one engine on this machine",
                fix=f"lightwork plan {self.plan.model} --on {self.plan.on}",
            )

    def axes(self) -> dict[str, Sequence[Any]]:
        """Values by name; their product is the space."""
        fixed = self.plan.techniques().get("scheduler")
        schedulers = variants(fixed) if fixed is not None else [*variants(Sarathi()), PrefillFirst()]
        cores = len(own_cores()) if self.plan.on == "cpu" else 1
        return {
            "scheduler": schedulers,
            "max_seqs": sorted({*MAX_SEQS, self.plan.max_seqs}),
            "threads": sorted({*(n for n in THREADS if n < cores), cores, self.plan.threads or cores}),
        }

    def default(self, threads: int) -> Setting:
        """What `serve` would do, with so many threads."""
        scheduler = self.plan.techniques().get("scheduler") or Sarathi()
        return Setting(scheduler, self.plan.max_seqs, threads)

    def space(self) -> list[Setting]:
        """All settings, the default among them."""
        return [Setting(*values) for values in product(*self.axes().values())]


def variants(scheduler: Scheduler[Any]) -> list[Scheduler[Any]]:
    """A scheduler with each of its whole numbers halved and doubled, the others as they are; itself among
    them."""
    found = [scheduler]
    for one in fields(scheduler):  # type: ignore[arg-type]
        value = getattr(scheduler, one.name)
        if type(value) is int and value > 1 and one.name != "seed":
            for power in POWERS:
                try:
                    other = replace(scheduler, **{one.name: max(1, round(value * 2.0**power))})  # type: ignore[type-var]
                except RangeError:
                    continue
                if other not in found:
                    found.append(other)
    return sorted(found, key=_by_name_and_numbers)


def _by_name_and_numbers(scheduler: Scheduler[Any]) -> tuple[str, list[float]]:
    numbers = [v for f in fields(scheduler) if isinstance(v := getattr(scheduler, f.name), int | float)]  # type: ignore[arg-type]
    return type(scheduler).__name__, numbers


class Bench:
    """A model that is loaded, and engines on it. threads: the default. runs: how many loads it has served."""

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning
        self._engine, self.model, settings = open_one(tuning.plan, Kernel(WallClock()))
        self.model.warm_up()
        self.threads = next((int(s.value) for s in settings if s.name == "threads"), 1)
        self.runs = 0
        self._latest: Sequence[Span] = []

    def close(self) -> None:
        self._engine.close()
        self.model.close()

    def measure(self, setting: Setting) -> float:
        """The figure of a setting. Raises what the engine raises."""
        self.model.set_threads(setting.threads)
        self.runs += 1
        make = runner_for(self.tuning.plan.on, self.model, ahead=self.tuning.plan.depth > 1)
        kernel = Kernel(
            WallClock(), seed=self.tuning.seed, trace=Trace("real", observers=[meter := self._meter()])
        )
        self._serve(setting, kernel, lambda engine_kernel, kv: make(engine_kernel, self.model, kv))
        assert kernel.trace is not None
        self._latest = kernel.trace.spans
        return self._figure(meter.summary(simulated=False))

    def predict(self, settings: Sequence[Setting]) -> list[float]:
        """The figures of settings, simulated with step times fitted to the latest measured run."""
        calibration = calibrate(self._latest)
        return [self._predict(setting, calibration) for setting in settings]

    def _predict(self, setting: Setting, calibration: Calibration) -> float:
        kernel = Kernel(
            seed=self.tuning.seed, trace=Trace("predicted", keep=0, observers=[meter := self._meter()])
        )
        cost, shares = CalibratedCost(calibration), self.model.reads_once
        self._serve(
            setting, kernel, lambda engine_kernel, kv: SimulatedRunner(cost, kv=kv if shares else None)
        )
        return self._figure(meter.summary(simulated=True))

    def _meter(self) -> Meter:
        return Meter(self.tuning.slo)

    def _figure(self, summary: Summary) -> float:
        if self.tuning.slo is not None:
            return summary.num_within_slo / summary.duration_s
        return summary.output_tokens_per_s

    def _serve(self, setting: Setting, kernel: Kernel, make: Callable[[Kernel, Any], Runner]) -> None:
        others = [t for kind, t in self.tuning.plan.techniques().items() if kind != "scheduler"]
        plan = replace(self.tuning.plan, use=(*others, setting.scheduler), max_seqs=setting.max_seqs)
        old, spec = self._engine.kv, self.model.spec
        kv = make_kv(plan, old.total, old.block_size, old.host.total if old.host is not None else 0)
        limits = self._engine.limits
        engine: Engine = make_engine(
            replace(plan, max_waiting=1 << 20),
            kernel,
            kv,
            make(kernel, kv),
            limits.max_len,
            spec.vocab_size,
        )
        arrivals = self.tuning.load.arrivals(kernel.rng("load"))
        try:
            run_load(engine, arrivals, SyntheticRequests(arrivals, spec.vocab_size, kernel.rng("prompts")))
        finally:
            engine.close()


def tune(
    tuning: Tuning, progress: Callable[[Trial], None] = lambda trial: None, bench: Bench | None = None
) -> Tuned:
    """Find the best setting. bench: one that is open already; else one is opened and closed.

    Raises what the default raises; a setting that fails is a trial like any other.
    """
    own = bench is None
    bench = bench or Bench(tuning)
    try:
        return _Search(tuning, bench, progress).run()
    finally:
        if own:
            bench.close()


class _Search:
    def __init__(self, tuning: Tuning, bench: Bench, progress: Callable[[Trial], None]) -> None:
        self.tuning = tuning
        self.bench = bench
        self.progress = progress
        self.trials = {setting: Trial(setting=setting) for setting in tuning.space()}
        self.default = self.trials[tuning.default(bench.threads)]
        self.default.ratios.append(1.0)
        axes = [list(values) for values in tuning.axes().values()]
        self._places = {
            setting: [
                axis.index(value) / max(1, len(axis) - 1) for axis, value in zip(axes, setting, strict=True)
            ]
            for setting in self.trials
        }

    def run(self) -> Tuned:
        start = self.bench.runs
        self._predict()
        for trial in self._far_from_measured():
            self._measure(trial)
        for _ in range(ROUNDS):
            self._measure(self.default)
            for trial in self._promising():
                self._measure(trial)
        others = [t for t in self.trials.values() if t.measured and t is not self.default]
        finalists = sorted(others, key=lambda trial: -median(trial.measured))[:FINALISTS]
        for turn in range(TURNS):
            self._in_turn([self.default, *finalists], turn)
        noise = _spread(self.default.measured)
        standing = [trial for trial in finalists if not trial.why]
        best = max(standing, key=lambda trial: trial.ratio, default=self.default)
        if best.ratio <= 1 + noise:
            best = self.default
        return Tuned(
            best=best,
            default=self.default,
            trials=[*self.trials.values()],
            curves=[*self._curves(best.setting, noise)],
            noise=noise,
            runs=self.bench.runs - start,
        )

    def _predict(self) -> None:
        """Step times are fitted for each number of threads, to one run of the default with it."""
        for threads in self.tuning.axes()["threads"]:
            self._measure(self.trials[self.default.setting._replace(threads=threads)])
            same = [trial for trial in self.trials.values() if trial.setting.threads == threads]
            for trial, figure in zip(same, self.bench.predict([t.setting for t in same]), strict=True):
                trial.predicted = figure

    def _promising(self) -> list[Trial]:
        """Settings not measured yet whose predictions are highest, corrected as those of their neighbours
        were."""
        measured = [
            t for t in self.trials.values() if t.measured and t.predicted > 0 and median(t.measured) > 0
        ]

        def corrected(trial: Trial) -> float:
            near = min(measured, key=lambda other: self._apart(trial, other), default=None)
            return trial.predicted * median(near.measured) / near.predicted if near else trial.predicted

        rest = [t for t in self.trials.values() if not t.measured and not t.why]
        return sorted(rest, key=corrected, reverse=True)[:PROMISING]

    def _far_from_measured(self) -> list[Trial]:
        """Settings whose values are the farthest from those of all that are measured already."""
        near = [t for t in self.trials.values() if t.measured]
        found: list[Trial] = []
        rest = [t for t in self.trials.values() if not t.measured]
        for _ in range(min(SPREAD, len(rest))):
            trial = max(rest, key=lambda t: min(self._apart(t, one) for one in (*near, *found)))
            rest.remove(trial)
            found.append(trial)
        return found

    def _apart(self, a: Trial, b: Trial) -> float:
        pairs = zip(self._places[a.setting], self._places[b.setting], strict=True)
        return sum((x - y) ** 2 for x, y in pairs)

    def _measure(self, trial: Trial) -> float:
        """One more run. A setting that fails has no further figures; the default must not."""
        try:
            figure = self.bench.measure(trial.setting)
        except LightworkError as error:
            if trial is self.default:
                raise
            trial.why = error.wrong
            figure = 0.0
        else:
            trial.measured.append(figure)
        self.progress(trial)
        return figure

    def _in_turn(self, trials: list[Trial], turn: int) -> None:
        """Measure each once in the same period, another one first each time; the default leads the list."""
        first = turn % len(trials)
        figures = {id(t): self._measure(t) for t in (*trials[first:], *trials[:first]) if not t.why}
        for trial in trials[1:]:
            if not trial.why:
                trial.ratios.append(_over(figures[id(trial)], figures[id(trials[0])]))

    def _curves(self, best: Setting, noise: float) -> Iterator[Curve]:
        for name, values in self.tuning.axes().items():
            found = [
                self.trials[setting] for v in values if (setting := best._replace(**{name: v})) in self.trials
            ]
            heights = [median(t.measured) if t.measured else t.predicted for t in found]
            points = [
                (str(getattr(t.setting, name)), height, bool(t.measured))
                for t, height in zip(found, heights, strict=True)
            ]
            yield Curve(name, points, peaks(heights, noise))


def peaks(heights: Sequence[float], noise: float) -> int:
    """Values from which the way to any higher one leads down by more than noise."""
    count, rising, extreme = 0, True, heights[0]
    for height in heights[1:]:
        if rising and height < extreme * (1 - noise):
            count, rising, extreme = count + 1, False, height
        elif not rising and height > extreme * (1 + noise):
            rising, extreme = True, height
        else:
            extreme = max(extreme, height) if rising else min(extreme, height)
    return count + rising


def _spread(figures: Sequence[float]) -> float:
    """Half of what is between the tenth and the ninetieth percentile, relative."""
    low, high = np.percentile(figures, (10, 90))
    return _over(float(high - low) / 2, median(figures)) if high > low else 0.0


def _over(a: float, b: float) -> float:
    """A ratio, also where a promise is kept for nobody."""
    return a / b if b else inf if a else 1.0
