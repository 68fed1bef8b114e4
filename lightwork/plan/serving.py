"""How to serve a model on a cluster: sizes, copies, scheduler and batch, by the rate they sustain in time.

The figure of a choice is its capacity: the highest rate of the load, its arrivals drawn closer together, at
which enough requests are served as promised. A choice is first tried a little above the capacity of the best
so far, so most cost one simulation. Sizes are tried first, then schedulers on the best of them, then batches,
then sizes once more: what a step is made of and how it is split depend on one another, but weakly. Last,
prefill and decode are tried apart, in sizes and numbers that follow from either phase alone (`placement`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from lightwork.cluster import parse_place
from lightwork.errors import CapacityError
from lightwork.models import read_shape
from lightwork.plan.capacity import PRECISION, Problem, capacity, rate_of
from lightwork.plan.placement import phases, placements
from lightwork.serve.loads import Arrival
from lightwork.serve.plan import Plan
from lightwork.serve.routers import Router
from lightwork.serve.routers.replicas import Replicas
from lightwork.serve.schedulers import Scheduler
from lightwork.serve.schedulers.prefill_first import PrefillFirst
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.schedulers.split_fuse import SplitFuse
from lightwork.serve.simulate import Report

SCHEDULERS: tuple[Scheduler[Any], ...] = (
    Sarathi(),
    *(Sarathi(chunk=n) for n in (256, 1024, 2048)),
    SplitFuse(),
    PrefillFirst(),
)
MAX_SEQS = (128, 32, 64, 256, 512)
TRIED_APART = 3
"""Placements of prefill and decode apart that are tried, of those whose phases promise most."""


class Choice(NamedTuple):
    """Engines behind a router, each on tp * pp devices unless the router says otherwise."""

    router: Router[Any]
    tp: int
    pp: int
    scheduler: Scheduler[Any]
    max_seqs: int

    def others(self, other: Choice) -> list[str]:
        """The settings in which another choice differs; the number of copies follows from their size."""
        copies = isinstance(self.router, Replicas) and isinstance(other.router, Replicas)
        return [
            n
            for n in self._fields
            if getattr(self, n) != getattr(other, n) and not (copies and n == "router")
        ]


class Trial(NamedTuple):
    """One choice tried.

    rate: requests/s it sustains, if `sustained`; else it was tried at that rate only, which was too much.
    share: of the requests served in time at that rate. why: it cannot be, if so.
    """

    choice: Choice
    rate: float
    share: float
    sustained: bool
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The best choice, its run at its capacity, and all trials in order. offered: requests/s of the load."""

    best: Trial
    run: Report
    trials: list[Trial]
    offered: float

    def bottleneck(self) -> str:
        """What keeps the best from more."""
        bound, share = next(iter(self.run.bounds.items()))
        words = {
            "compute": "arithmetic",
            "memory": "memory traffic",
            "network": "exchange between devices",
            "launches": "kernel launches",
            "host": "host time between steps",
        }
        text = f"{words[bound]}, {share:.0%} of the devices' time"
        if self.run.summary.kv_usage_max > 0.97:
            text += "; KV memory is full at times"
        return text

    def reasons(self) -> list[tuple[str, str, str]]:
        """(setting, value, what other values come to, all else equal)."""
        rows = []
        for name in Choice._fields:
            others = [t for t in self.trials if self.best.choice.others(t.choice) == [name]]
            told = "; ".join(self._beside(name, t) for t in others) or "nothing else tried"
            rows.append((name, str(getattr(self.best.choice, name)), told))
        return rows

    def _beside(self, name: str, trial: Trial) -> str:
        value = getattr(trial.choice, name)
        if trial.why:
            return f"{value}: {trial.why}"
        if trial.sustained:
            return f"{value}: {trial.rate / self.best.rate:.2f}x"
        return f"{value}: {trial.share:.0%} in time at {trial.rate:.3g}/s"


def search(problem: Problem, progress: Callable[[Trial], None] = lambda trial: None) -> Found:
    """The choice that sustains the highest rate.

    Raises SpecError for a load without arrival times, CapacityError if no choice serves any request in time.
    """
    arrivals = problem.load.arrivals(np.random.default_rng(problem.seed))
    work = _Search(problem, arrivals, progress)
    offered = rate_of(arrivals)
    for stage in (work.sizes, work.schedulers, work.batches, work.sizes, work.apart):
        for choice in stage():
            work.take(choice)
    if work.best is None:
        raise CapacityError(
            f"nothing on {problem.plan.on} serves {problem.share:.0%} of the requests in time at any rate",
            expected="a lighter promise or more devices",
            fix="raise ttft and tpot",
        )
    best, run = work.best
    return Found(best=best, run=run, trials=[*work.tried.values()], offered=offered)


@dataclass(slots=True)
class _Search:
    problem: Problem
    arrivals: Sequence[Arrival]
    progress: Callable[[Trial], None]
    tried: dict[Choice, Trial] = field(default_factory=dict)
    best: tuple[Trial, Report] | None = None

    def _base(self) -> Choice:
        if self.best is not None:
            return self.best[0].choice
        return Choice(Replicas(copies=1), 1, 1, self._fixed("scheduler") or SCHEDULERS[0], MAX_SEQS[0])

    def _fixed(self, kind: str) -> Any:
        return self.problem.plan.techniques().get(kind)

    def sizes(self) -> Iterator[Choice]:
        """Tensor-parallel ranks within a node, stages over what is left, copies over the rest."""
        for tp, pp in self._splits():
            router = self._fixed("router") or Replicas(copies=self._devices() // (tp * pp))
            yield self._base()._replace(router=router, tp=tp, pp=pp)

    def apart(self) -> Iterator[Choice]:
        """Prefill and decode engines, in the sizes and numbers whose phases sustain most."""
        if self._fixed("router") is not None:
            return
        base = self._base()

        def alone(tp: int, pp: int) -> Plan:
            return self._plan(base._replace(tp=tp, pp=pp), router=None)

        devices = self._devices()
        prefill, decode = phases(self.problem, self.arrivals, [*self._splits()], alone, devices)
        for found in placements(prefill, decode, devices)[:TRIED_APART]:
            yield base._replace(router=found.router)

    def _devices(self) -> int:
        return parse_place(self.problem.plan.on).num_devices

    def _splits(self) -> Iterator[tuple[int, int]]:
        spec, cluster = read_shape(self.problem.plan.model), parse_place(self.problem.plan.on)
        for tp in _powers(min(cluster.per_node, cluster.num_devices)):
            if spec.num_kv_heads % tp == 0:
                yield from ((tp, pp) for pp in _powers(min(spec.num_layers, cluster.num_devices // tp)))

    def schedulers(self) -> Iterator[Choice]:
        if self._fixed("scheduler") is None:
            for scheduler in SCHEDULERS:
                yield self._base()._replace(scheduler=scheduler)

    def batches(self) -> Iterator[Choice]:
        for max_seqs in MAX_SEQS:
            yield self._base()._replace(max_seqs=max_seqs)

    def take(self, choice: Choice) -> None:
        """Try a choice, and keep it if it is the best."""
        if choice in self.tried:
            return
        floor = self.best[0].rate * (1 + PRECISION) if self.best else 0.0
        try:
            rate, share, run = capacity(
                replace(self.problem, plan=self._plan(choice, choice.router)), self.arrivals, floor
            )
            trial = Trial(choice, rate, share, run is not None)
        except CapacityError as error:
            trial, run = Trial(choice, 0.0, 0.0, False, error.wrong), None
        self.tried[choice] = trial
        if run is not None:
            self.best = trial, run
        self.progress(trial)

    def _plan(self, choice: Choice, router: Router[Any] | None) -> Plan:
        techniques = self.problem.plan.techniques().items()
        fixed = [technique for kind, technique in techniques if kind not in ("scheduler", "router")]
        return replace(
            self.problem.plan,
            use=[*fixed, choice.scheduler, *([router] if router is not None else [])],
            tp=choice.tp,
            pp=choice.pp,
            max_seqs=choice.max_seqs,
        )


def _powers(most: int) -> list[int]:
    return [1 << i for i in range(max(1, most).bit_length()) if 1 << i <= most]
