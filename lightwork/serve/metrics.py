"""Latencies and rates of a run, read from its spans: the same code for real and simulated traces.

ttft: arrival to first token. tbt: gap between two tokens of one request. tpot: (last - first token) /
(tokens - 1).
queue: arrival to the first step that contains the request. All in seconds.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lightwork.runtime.trace import Span, Trace
from lightwork.shown import Table, readable, unit_of

if TYPE_CHECKING:
    from rich.console import Group


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


class Slo(NamedTuple):
    """What each request is promised. ttft_s: until its first token. tpot_s: per further token, on average."""

    ttft_s: float = inf
    tpot_s: float = inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One run in numbers. simulated: predicted, not measured.

    prompt_tokens: of the requests that were admitted; cached_tokens: those of them found in the prefix cache.
    num_within_slo: requests that ended in time. kv_usage_max: largest share of the KV blocks held.
    trained_tokens: see `trained_tokens`.
    """

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
    prompt_tokens: int
    cached_tokens: int
    num_within_slo: int
    kv_usage_max: float
    trained_tokens: int

    def to_dict(self) -> dict[str, float | int | bool]:
        return asdict(self)

    def table(self) -> Table:
        """Each figure in its unit."""
        figures = [(name, value) for name, value in self.to_dict().items() if name != "simulated"]
        rows = tuple(
            (name, readable(value, unit) if (unit := unit_of(name)) else value) for name, value in figures
        )
        return Table(
            title="simulated" if self.simulated else "measured", columns=("figure", "value"), rows=rows
        )

    def __rich__(self) -> Group:
        return self.table().__rich__()

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


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


def trained_tokens(step: Span) -> int:
    """Of a step: those that have gone there and back, through all layers."""
    slices = (step.args or {}).get("slices", ())
    return sum(count for layer, _, count, back in slices if back and layer == 0)


class Meter:
    """An observer that keeps one number per token, not the spans: for loads of a million requests.

    Percentiles are over requests (ttft, queue) or over all gaps (tbt); 0 where none exist.
    """

    def __init__(self, slo: Slo | None = None) -> None:
        self._slo = slo or Slo()
        self._num_within = 0
        self._kv_usage_max = 0.0
        self._open: dict[int, _Progress] = {}
        self._ending: list[int] = []
        self._gone: set[int] = set()
        self._ttft, self._queue, self._gaps = array("d"), array("d"), array("f")
        self._num_requests = self._num_finished = self._num_preempted = self._tokens = self._steps = 0
        self._prompt_tokens = self._cached_tokens = self._trained_tokens = 0
        self._begin_s: float | None = None
        self._end_s = 0.0

    def on(self, span: Span) -> None:
        if span.kind == "step":
            self._step(span)
        elif span.kind == "arrive":
            self._arrive(int(span.name), span.start_s)
        elif span.kind == "admit":
            self._admit(int(span.name), span.args or {})
        elif span.kind == "preempt":
            self._num_preempted += 1
        elif span.kind == "finish":
            self._finish(int(span.name), str((span.args or {})["reason"]))

    def _finish(self, seq_id: int, reason: str) -> None:
        """A text's end is told before the step that wrote it; a hang-up comes before or within a step."""
        self._num_finished += seq_id in self._open
        if reason in ("stop", "length"):
            self._ending.append(seq_id)
        else:
            self._open.pop(seq_id, None)
            self._gone.add(seq_id)

    def _admit(self, seq_id: int, args: Mapping[str, Any]) -> None:
        request = self._open.get(seq_id)
        if request is not None and not request.admitted:
            request.admitted = True
            self._prompt_tokens += args["known"]
            self._cached_tokens += args["cached"]

    def _arrive(self, seq_id: int, now_s: float) -> _Progress:
        self._num_requests += 1
        self._begin_s = now_s if self._begin_s is None else min(self._begin_s, now_s)
        made = self._open[seq_id] = _Progress(now_s)
        return made

    def _step(self, span: Span) -> None:
        assert span.args is not None
        self._steps += 1
        self._end_s = max(self._end_s, span.end_s)
        self._kv_usage_max = max(self._kv_usage_max, span.args["kv_usage"])
        self._trained_tokens += trained_tokens(span)
        for seq_id, _, _, _, emitted in span.args["chunks"]:
            if seq_id in self._gone:
                continue
            # Continuations beyond a request's first begin when they are first scheduled.
            request = self._open.get(seq_id) or self._arrive(seq_id, span.start_s)
            if request.started_s is None:
                request.started_s = span.start_s
                self._queue.append(span.start_s - request.arrived_s)
            for _ in range(emitted):
                self._tokens += 1
                if request.last_token_s is None:
                    self._ttft.append(span.end_s - request.arrived_s)
                    request.first_token_s = span.end_s
                else:
                    self._gaps.append(span.end_s - request.last_token_s)
                request.last_token_s = span.end_s
                request.tokens += 1
        for seq_id in self._ending:
            ended = self._open.pop(seq_id, None)
            self._num_within += ended is not None and ended.within(self._slo)
        self._ending.clear()

    def summary(self, *, simulated: bool) -> Summary:
        duration_s = max(0.0, self._end_s - (self._begin_s or 0.0)) if self._steps else 0.0
        return Summary(
            simulated=simulated,
            num_requests=self._num_requests,
            num_finished=self._num_finished,
            duration_s=duration_s,
            output_tokens_per_s=self._tokens / duration_s if duration_s else 0.0,
            ttft_p50_s=_percentile(self._ttft, 50),
            ttft_p99_s=_percentile(self._ttft, 99),
            tbt_p50_s=_percentile(self._gaps, 50),
            tbt_p99_s=_percentile(self._gaps, 99),
            tbt_max_s=float(np.max(self._gaps)) if self._gaps else 0.0,
            queue_p50_s=_percentile(self._queue, 50),
            num_preempted=self._num_preempted,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            num_within_slo=self._num_within,
            kv_usage_max=self._kv_usage_max,
            trained_tokens=self._trained_tokens,
        )


@dataclass(slots=True)
class _Progress:
    """One sequence that has not ended."""

    arrived_s: float
    admitted: bool = False
    started_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    tokens: int = 0

    def within(self, slo: Slo) -> bool:
        """Whether a request that has ended was served as promised."""
        if self.first_token_s is None or self.last_token_s is None:
            return False
        tpot_s = (self.last_token_s - self.first_token_s) / max(1, self.tokens - 1)
        return self.first_token_s - self.arrived_s <= slo.ttft_s and tpot_s <= slo.tpot_s


def summarise(trace: Trace, *, simulated: bool, slo: Slo | None = None) -> Summary:
    """The figures of a run whose spans were kept."""
    meter = Meter(slo)
    for span in trace.spans:
        meter.on(span)
    return meter.summary(simulated=simulated)


def _percentile(values: array[float], percent: float) -> float:
    return float(np.percentile(np.frombuffer(values, values.typecode), percent)) if values else 0.0
