"""Run a recorded load again in simulation, durations and texts fed back: do both worlds decide alike?"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from lightwork.cluster.calibration import Calibration, Sample, fit
from lightwork.memory.kv import KVCache
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.cost import step_features
from lightwork.serve.engine import Engine
from lightwork.serve.schedulers import Step
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulated_runner import SimulatedRunner

Decision = tuple[str, object]


def decisions(trace: Trace) -> list[Decision]:
    """What the engine decided, without times: steps with their chunks and emissions, preemptions, endings."""
    made: list[Decision] = []
    for span in trace.spans:
        args = span.args or {}
        if span.kind == "step":
            made.append(("step", tuple(args["chunks"])))
        elif span.kind == "preempt":
            made.append(("preempt", span.name))
        elif span.kind == "finish":
            made.append(("finish", (span.name, args["reason"], args["output"])))
    return made


class RecordedCost:
    """Step costs read from a trace: step i takes as long as it did, the pause before step i + 1 included."""

    def __init__(self, durations_s: Sequence[float]) -> None:
        self._durations_s = list(durations_s)
        self._next = 0

    def stages(self, step: Step) -> Sequence[float]:
        self._next += 1
        return [self._durations_s[self._next - 1] if self._next <= len(self._durations_s) else 0.0]


def calibrate(spans: Iterable[Span]) -> Calibration:
    """Step times fitted to those of a run. Raises LightworkError for a few."""
    return fit(samples(spans))


def samples(spans: Iterable[Span]) -> list[Sample]:
    """Features and seconds of a run's steps, the pauses between them included."""
    steps = sorted((s for s in spans if s.kind == "step"), key=lambda s: s.start_s)
    durations_s, _ = _timeline(steps)
    return [(_features(span), s) for span, s in zip(steps, durations_s, strict=True)]


def _features(span: Span) -> dict[str, float]:
    """Of a step, as `CalibratedCost` has them."""
    args = span.args or {}
    counts = {name: args[name] for name in ("shared", "copied") if name in args}
    return step_features(
        [(start, count + drafted) for _, start, count, drafted, _ in args["chunks"]],
        scored=sum(drafted + (emitted > 0) for *_, drafted, emitted in args["chunks"]),
        **counts,
    )


def replay(
    trace: Trace,
    seqs: Sequence[Seq],
    make_engine: Callable[[Kernel, SimulatedRunner, KVCache], Engine],
    kv: KVCache,
) -> Trace:
    """Run a recorded load again in simulation, its durations and texts fed back; returns the new trace.

    trace, seqs: of a run with one continuation per request. kv: an empty cache of the same size. If the
    engine decides alike in both worlds, `decisions` of both traces are equal.
    """
    steps = sorted((s for s in trace.spans if s.kind == "step"), key=lambda s: s.start_s)
    durations_s, seen_at_s = _timeline(steps)
    texts = {seq.id: list(seq.tokens) for seq in seqs}

    def script(seq: Seq, position: int) -> int:
        return texts[seq.id][position] if position < len(texts[seq.id]) else 0

    kernel = Kernel(trace=Trace("replayed"))
    shares = kv if trace.about.get("reads_once") else None
    engine = make_engine(kernel, SimulatedRunner(RecordedCost(durations_s), script=script, kv=shares), kv)
    groups: dict[float, list[Request]] = {}
    starts = [s.start_s for s in steps]
    for seq in sorted(seqs, key=lambda s: s.id):
        groups.setdefault(seen_at_s[bisect_left(starts, seq.arrived_s)], []).append(seq.request)

    def submit(requests: list[Request]) -> None:
        for request in requests:
            engine.submit(request)

    async def client() -> None:
        for when_s, requests in groups.items():
            await kernel.sleep(max(0.0, when_s - kernel.now()))
            submit(requests)
        await engine.drained()

    serving = kernel.spawn(engine.run(), name="engine")
    kernel.run(client())
    serving.cancel()
    assert kernel.trace is not None
    return kernel.trace


def _timeline(steps: Sequence[Span]) -> tuple[list[float], list[float]]:
    """How long each step lasts in the replay, and when requests must arrive to be first seen by each step.

    While the engine was busy a step lasts until the next one was planned, and arrivals in between come
    half-way. A step that ended an idle time is planned at the very moment its first request comes.
    """
    durations_s: list[float] = []
    seen_at_s: list[float] = []
    busy = False
    for i, span in enumerate(steps):
        seen_at_s.append((steps[i - 1].start_s + span.start_s) / 2 if busy else span.start_s)
        args = span.args or {}
        busy = bool(args["waiting"] or args["running"])
        end_s = steps[i + 1].start_s if busy and i + 1 < len(steps) else span.end_s
        durations_s.append(end_s - span.start_s)
    return durations_s, seen_at_s
