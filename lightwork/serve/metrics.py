"""Latencies and rates of a run, read from its spans: the same code for real and simulated traces.

ttft: arrival to first token. tbt: gap between two tokens of one request. tpot: (last - first token) /
(tokens - 1).
queue: arrival to the first step that contains the request. All in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from lightwork.runtime.trace import Span, Trace


@dataclass(slots=True)
class RequestTimes:
    """When things happened to one sequence, seconds on the trace's clock."""

    arrived_s: float
    prompt_len: int
    started_s: float | None = None
    tokens_s: list[float] = field(default_factory=list)
    finished_s: float | None = None
    reason: str = ""
    num_preempted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One run in numbers. simulated: predicted, not measured."""

    simulated: bool
    num_requests: int
    num_finished: int
    duration_s: float
    output_tokens_per_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    tbt_p50_s: float
    tbt_p99_s: float
    tbt_max_s: float
    queue_p50_s: float
    num_preempted: int
    steps: int

    def to_dict(self) -> dict[str, float | int | bool]:
        return asdict(self)


def request_times(spans: Iterable[Span]) -> dict[int, RequestTimes]:
    """Times by sequence id. Continuations beyond a request's first begin when they are first scheduled."""
    times: dict[int, RequestTimes] = {}
    for span in spans:
        args = span.args or {}
        if span.kind == "arrive":
            times[int(span.name)] = RequestTimes(span.start_s, int(args["prompt"]))
        elif span.kind == "step":
            for seq_id, _, _, _, emitted in args["chunks"]:
                request = times.setdefault(seq_id, RequestTimes(span.start_s, 0))
                if request.started_s is None:
                    request.started_s = span.start_s
                request.tokens_s.extend([span.end_s] * emitted)
        elif span.kind == "preempt":
            times[int(span.name)].num_preempted += 1
        elif span.kind == "finish" and int(span.name) in times:
            times[int(span.name)].finished_s = span.start_s
            times[int(span.name)].reason = str(args["reason"])
    return times


def summarise(trace: Trace, *, simulated: bool) -> Summary:
    """The figures of a run.

    Percentiles are over requests (ttft, queue) or over all gaps (tbt); 0 where none exist.
    """
    times = list(request_times(trace.spans).values())
    steps = [span for span in trace.spans if span.kind == "step"]
    tokens = sum(len(t.tokens_s) for t in times)
    begin = min((t.arrived_s for t in times), default=0.0)
    duration_s = max((s.end_s for s in steps), default=begin) - begin
    gaps = [b - a for t in times for a, b in zip(t.tokens_s, t.tokens_s[1:], strict=False)]
    ttft = [t.tokens_s[0] - t.arrived_s for t in times if t.tokens_s]
    queue = [t.started_s - t.arrived_s for t in times if t.started_s is not None]
    return Summary(
        simulated=simulated,
        num_requests=len(times),
        num_finished=sum(t.finished_s is not None for t in times),
        duration_s=duration_s,
        output_tokens_per_s=tokens / duration_s if duration_s else 0.0,
        ttft_p50_s=_percentile(ttft, 50),
        ttft_p99_s=_percentile(ttft, 99),
        tbt_p50_s=_percentile(gaps, 50),
        tbt_p99_s=_percentile(gaps, 99),
        tbt_max_s=max(gaps, default=0.0),
        queue_p50_s=_percentile(queue, 50),
        num_preempted=sum(t.num_preempted for t in times),
        steps=len(steps),
    )


def _percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else 0.0
