"""Why a request took as long as it did, and what would have made a recorded run faster.

A trace says when each step ran and what it contained, so a request's life falls into parts without anything
being measured again. What would help is found by running the recorded load once more, simulated, with one
thing changed at a time: on the simulated place of the record, or with step times fitted to those of the
record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from lightwork.cluster.calibration import Calibration
from lightwork.errors import SpecError
from lightwork.models import read_shape
from lightwork.plan.serving import SCHEDULERS
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.cost import CalibratedCost
from lightwork.serve.loads import Arrival, Given
from lightwork.serve.metrics import request_times
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan, make_engine, make_kv
from lightwork.serve.plan_file import plan_of
from lightwork.serve.replay import calibrate
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.simulate import SyntheticRequests, run_load, simulate
from lightwork.serve.simulated_runner import SimulatedRunner

BLOCKERS = 3
ROUNDING_S = 1e-12
FULL = 0.97
"""From this share on, KV memory was in the way."""


# -- one request


class Part(NamedTuple):
    """Of a request's life: what it did or waited for, how long, and what is to be said about it."""

    name: str
    seconds: float
    note: str


def explain(spans: Iterable[Span], seq_id: int) -> list[Part]:
    """The parts of a sequence's life, from its arrival to the step of its last token; they sum to it.

    Raises SpecError for one that the trace does not have.
    """
    all_spans = list(spans)
    life = _Life(all_spans, seq_id)
    found: dict[str, float] = {}
    notes: dict[str, str] = {}
    for name, start_s, end_s, note in life.parts():
        found[name] = found.get(name, 0.0) + end_s - start_s
        if note:
            notes[name] = f"{notes[name]}; {note}" if name in notes and notes[name] != note else note
    counts = life.counts()
    return [Part(name, seconds, notes.get(name) or counts.get(name, "")) for name, seconds in found.items()]


def life(spans: Iterable[Span], seq_id: int) -> list[Span]:
    """The same parts one after another, as spans: each time that a sequence did something, or waited.

    Raises SpecError for a sequence that the trace does not have.
    """
    rank = str(seq_id)
    return [Span(rank, name, note, a, b) for name, a, b, note in _Life(list(spans), seq_id).parts()]


class _Life:
    """What a trace says of one sequence."""

    def __init__(self, spans: Sequence[Span], seq_id: int) -> None:
        self.id, name = seq_id, str(seq_id)
        mine = [span for span in spans if span.name == name and span.kind != "step"]
        self.all_steps = sorted((s for s in spans if s.kind == "step"), key=lambda s: s.start_s)
        self.steps = [(s, c) for s in self.all_steps for c in _chunks(s) if c[0] == seq_id]
        if not self.steps:
            known = sorted({c[0] for s in self.all_steps for c in _chunks(s)})
            raise SpecError(
                f"no step of this trace contains sequence {seq_id}",
                expected=f"{known[0]} to {known[-1]}" if known else "a trace of a served load",
                fix=f"lightwork why FILE {known[0]}" if known else "--trace FILE of serve or sim",
            )
        arrived = [s for s in mine if s.kind == "arrive"]
        self.arrived_s = arrived[0].start_s if arrived else self.steps[0][0].start_s
        self.prompt_len = int((arrived[0].args or {})["prompt"]) if arrived else self.steps[0][1][2]
        self.moves = [s for s in mine if s.kind in ("fetch", "pull")]
        self.preempted_s = [s.start_s for s in mine if s.kind == "preempt"]

    def parts(self) -> Iterator[tuple[str, float, float, str]]:
        """(part, from, to, note), one after the other without gaps."""
        at_s, reached = self.arrived_s, 0
        for i, (step, (_, start, count, _, _)) in enumerate(self.steps):
            if step.start_s > at_s + ROUNDING_S:
                yield from self._wait(i, at_s, step.start_s)
            yield self._computes(start, reached), max(at_s, step.start_s), step.end_s, ""
            at_s, reached = max(at_s, step.end_s), max(reached, start + count)

    def counts(self) -> dict[str, str]:
        """Of steps that compute: how many."""
        steps: Counter[str] = Counter()
        reached = 0
        for _, (_, start, count, _, _) in self.steps:
            steps[self._computes(start, reached)] += 1
            reached = max(reached, start + count)
        return {name: f"{n} steps" for name, n in steps.items()}

    def _computes(self, start: int, reached: int) -> str:
        """What a step does for it that begins at a token, if tokens had been computed before up to
        another."""
        if start < reached:
            return "compute again"
        return "decode" if reached >= self.prompt_len else "prefill"

    def _wait(self, i: int, from_s: float, to_s: float) -> Iterator[tuple[str, float, float, str]]:
        """Before its step i: for its KV to be moved, in the queue, or for others."""
        moves = [s for s in self.moves if from_s <= s.start_s and s.end_s <= to_s + 1e-9]
        for move in moves:
            if move.start_s > from_s:
                yield self._idle(i, from_s, move.start_s)
            yield move.kind, max(from_s, move.start_s), move.end_s, ""
            from_s = max(from_s, move.end_s)
        if to_s > from_s:
            yield self._idle(i, from_s, to_s)

    def _idle(self, i: int, from_s: float, to_s: float) -> tuple[str, float, float, str]:
        others = [s for s in self.all_steps if s.start_s < to_s and s.end_s > from_s]
        if i == 0:
            return "queue", from_s, to_s, _blockers(others)
        if any(from_s <= at_s <= to_s for at_s in self.preempted_s):
            return "preempted", from_s, to_s, _blockers(others)
        if others:
            return "other steps", from_s, to_s, _blockers(others)
        return "between steps", from_s, to_s, "planning, sampling, sending"


def _chunks(step: Span) -> list[tuple[int, int, int, int, int]]:
    return [tuple(c) for c in (step.args or {})["chunks"]]


def _blockers(steps: Sequence[Span]) -> str:
    """Who was computed meanwhile, and whether memory was short."""
    rows: Counter[int] = Counter()
    for step in steps:
        for seq_id, _, count, _, _ in _chunks(step):
            rows[seq_id] += count
    if not rows:
        return "no step ran"
    most = ", ".join(f"{seq_id} ({n} rows)" for seq_id, n in rows.most_common(BLOCKERS))
    more = f" and {len(rows) - BLOCKERS} others" if len(rows) > BLOCKERS else ""
    full = any((step.args or {}).get("kv_usage", 0.0) >= FULL for step in steps)
    return f"behind {most}{more}{'; KV memory was full' if full else ''}"


# -- a whole run


class Figures(NamedTuple):
    """Of a run, seconds: the mean life of a request, and tails."""

    latency_mean_s: float
    latency_p99_s: float
    ttft_p99_s: float
    tbt_p99_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing done differently, and what the recorded load comes to then. gain: in the mean life of a
    request, over the record's own techniques, predicted alike."""

    name: str
    figures: Figures
    gain: float
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A recorded run: its plan, and when what came. calibration: step times fitted to it, if it was real."""

    plan: Plan
    about: Mapping[str, Any]
    arrivals: Sequence[Arrival]
    figures: Figures
    calibration: Calibration | None

    @classmethod
    def of(cls, trace: Trace) -> Record:
        """Raises SpecError for a trace that does not say what was run, or of several engines for real."""
        told, plan = trace.about, plan_of(trace.about)
        real = not plan.on.startswith("sim:")
        chosen = plan.techniques()
        if real and "router" in chosen:
            raise SpecError("a record of several engines cannot be predicted", expected="one engine")
        if "tuning" in chosen:
            raise SpecError("a record of training cannot be predicted", expected="one that only serves")
        spans = trace.spans
        return cls(
            plan=plan,
            about=told,
            arrivals=_arrivals(spans),
            figures=_figures(spans),
            calibration=calibrate(spans) if real else None,
        )

    def predict(self, plan: Plan) -> Figures:
        """The recorded load under another plan, simulated. Prompts are of the recorded lengths, their tokens
        random."""
        plan = replace(plan, max_waiting=max(plan.max_waiting, len(self.arrivals) + 1))
        if self.calibration is None:
            return _figures(simulate(plan, Given(self.arrivals)).trace.spans)
        spec = read_shape(plan.model)
        kernel = Kernel(trace=Trace("predicted"))
        sizes = (int(self.about[name]) for name in ("kv_blocks", "block_size", "tier_blocks"))
        kv = make_kv(plan, *sizes)
        shares = kv if self.about.get("reads_once") else None
        runner = SimulatedRunner(CalibratedCost(self.calibration), kv=shares)
        engine = make_engine(plan, kernel, kv, runner, int(self.about["max_len"]), spec.vocab_size)
        self._run(engine, kernel)
        engine.close()
        assert kernel.trace is not None
        return _figures(kernel.trace.spans)

    def measure(self, plan: Plan) -> Figures:
        """The recorded load served for real under a plan."""
        kernel = Kernel(WallClock(), trace=Trace("measured"))
        engine, model, _ = open_engine(plan, kernel)
        try:
            model.warm_up()
            self._run(engine, kernel)
        finally:
            engine.close()
            model.close()
        assert kernel.trace is not None
        return _figures(kernel.trace.spans)

    def _run(self, engine: Any, kernel: Kernel) -> None:
        requests = SyntheticRequests(self.arrivals, engine.vocab_size, kernel.rng("prompts"))
        run_load(engine, self.arrivals, requests)

    def changes(self) -> Iterator[Change]:
        """The record as it is, predicted, then with one thing changed at a time."""
        now = self.predict(self.plan)
        yield Change(name="as recorded", figures=now, gain=1.0, plan=self.plan)
        for name, plan in self._variants():
            figures = self.predict(plan)
            yield Change(
                name=name, figures=figures, gain=now.latency_mean_s / figures.latency_mean_s, plan=plan
            )

    def _variants(self) -> Iterator[tuple[str, Plan]]:
        chosen = self.plan.techniques()
        others = [t for kind, t in chosen.items() if kind != "scheduler"]
        for scheduler in SCHEDULERS:
            if scheduler != chosen.get("scheduler", Sarathi()):
                yield repr(scheduler), replace(self.plan, use=(*others, scheduler))
        sizes = [self.plan.max_seqs // 2]
        if self.calibration is None:  # a real record knows no larger batch than its own
            sizes.append(self.plan.max_seqs * 2)
        for max_seqs in filter(None, sizes):
            yield f"max_seqs={max_seqs}", replace(self.plan, max_seqs=max_seqs)


def _arrivals(spans: Iterable[Span]) -> list[Arrival]:
    """When each request came, and how long it was; what was cached of prompts is one common beginning."""
    came: dict[str, tuple[float, int]] = {}
    cached: dict[str, int] = {}
    outputs: Counter[str] = Counter()
    for span in spans:
        args = span.args or {}
        if span.kind == "arrive":
            came[span.name] = span.start_s, int(args["prompt"])
        elif span.kind == "admit":
            came.setdefault(span.name, (span.start_s, int(args["known"])))
            cached.setdefault(span.name, int(args["cached"]))
        elif span.kind == "step":
            outputs.update({str(c[0]): c[4] for c in _chunks(span)})
    if not came:
        raise SpecError("no request came in this trace", expected="a trace of a served load")
    first_s = min(at_s for at_s, _ in came.values())
    return [
        Arrival(
            at_s - first_s,
            prompt - min(cached.get(name, 0), prompt - 1),
            max(1, outputs[name]),
            shared=0,
            shared_len=min(cached.get(name, 0), prompt - 1),
        )
        for name, (at_s, prompt) in sorted(came.items(), key=lambda item: item[1][0])
    ]


def _figures(spans: Iterable[Span]) -> Figures:
    times = [t for t in request_times(spans).values() if t.tokens_s]
    lives = [t.tokens_s[-1] - t.arrived_s for t in times]
    gaps = [b - a for t in times for a, b in zip(t.tokens_s, t.tokens_s[1:], strict=False)] or [0.0]
    ttft = [t.tokens_s[0] - t.arrived_s for t in times]
    return Figures(
        float(np.mean(lives)),
        float(np.percentile(lives, 99)),
        float(np.percentile(ttft, 99)),
        float(np.percentile(gaps, 99)),
    )
