"""Offer a load to an engine, on any clock.

The client is one coroutine for both worlds: it sleeps until the next arrival and submits. What differs is
only the kernel's clock and the engine's runner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np

from lightwork.cluster import Cluster
from lightwork.decode.sampling import Pick, Sampling
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.progress import Progress
from lightwork.runtime.timeline import lanes, lanes_table, phases
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.begun import Begun
from lightwork.serve.cost import ClusterCost
from lightwork.serve.engine import Engine
from lightwork.serve.expert_runner import ExpertRunner
from lightwork.serve.fleet import Fleet
from lightwork.serve.loads import Arrival, Load
from lightwork.serve.metrics import Meter, Slo, Summary
from lightwork.serve.plan import Plan, Setting, about
from lightwork.serve.run_folder import Recorder
from lightwork.serve.sequence import FinishReason, Request, Sink
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulated import open_simulated
from lightwork.serve.simulated_runner import SimulatedRunner
from lightwork.shown import Table

if TYPE_CHECKING:
    from rich.console import Group


class Server(Protocol):
    """Who takes requests: an engine, or what looks like one."""

    @property
    def kernel(self) -> Kernel: ...
    def submit(self, request: Request, sink: Sink | None = None) -> list[Seq]: ...
    async def drained(self) -> None: ...
    async def run(self) -> None: ...


class SyntheticRequests(Sequence[Request]):
    """Requests of random tokens that run to their full length, greedily; each is made when asked for.

    variants: what requests say for the models that arrivals name; None: those names.
    """

    def __init__(
        self,
        arrivals: Sequence[Arrival],
        vocab_size: int,
        rng: np.random.Generator,
        variants: Mapping[str, str] | None = None,
    ) -> None:
        self._arrivals = arrivals
        self._variants = variants or {}
        self._vocab_size = vocab_size
        self._key = [int(k) for k in rng.integers(0, 1 << 62, 2)]
        self._greedy = Sampling(temperature=0.0)

    def __len__(self) -> int:
        return len(self._arrivals)

    @overload
    def __getitem__(self, i: int) -> Request: ...
    @overload
    def __getitem__(self, i: slice) -> list[Request]: ...
    def __getitem__(self, i: int | slice) -> Request | list[Request]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        arrival = self._arrivals[i]
        prompt = self._text(1, i % len(self), arrival.prompt_len)
        if arrival.shared_len:
            prompt = self._text(0, arrival.shared, arrival.shared_len) + prompt
        return Request(
            prompt=tuple(prompt),
            max_tokens=arrival.output_len,
            sampling=self._greedy,
            tenant=arrival.tenant,
            model=self._variants.get(arrival.model, arrival.model),
        )

    def _text(self, kind: int, number: int, length: int) -> list[int]:
        rng = np.random.Generator(np.random.Philox(key=[self._key[kind], number]))
        tokens: list[int] = rng.integers(0, self._vocab_size, length).tolist()
        return tokens


class _Offer:
    """Submits arrivals when they are due: at their time, or after another one has ended.

    keep: hold the sequences, by the number of their arrival. recorder: is told what is asked.
    """

    def __init__(
        self,
        engine: Server,
        arrivals: Sequence[Arrival],
        requests: Sequence[Request],
        sinks: Sequence[Sink] | None = None,
        *,
        keep: bool = True,
        recorder: Recorder | None = None,
    ) -> None:
        self._engine = engine
        self._recorder = recorder
        self._arrivals = arrivals
        self._requests = requests
        self._sinks = sinks
        self._later: dict[int, list[int]] = {}
        for i, arrival in enumerate(arrivals):
            if arrival.after is not None:
                self._later.setdefault(arrival.after, []).append(i)
        self._due = len(arrivals)
        self._all_in = engine.kernel.future("requests that come after others")
        self._keep = keep
        self.seqs: dict[int, list[Seq]] = {}

    async def run(self) -> None:
        kernel = self._engine.kernel
        start_s = kernel.now()
        for i, arrival in enumerate(self._arrivals):
            if arrival.after is None:
                wait_s = start_s + arrival.at_s - kernel.now()
                if wait_s > 0:
                    await kernel.sleep(wait_s)
                self._submit(i, ())
        if self._due:
            await self._all_in
        await self._engine.drained()

    def _submit(self, i: int, said: Sequence[int]) -> None:
        request = self._requests[i]
        if said:
            request = replace(request, prompt=(*said, *request.prompt))
        sink = self._sinks[i] if self._sinks else None
        if i in self._later:
            sink = _Then(sink, partial(self._ended, i))
        seqs = self._engine.submit(request, sink)
        if self._recorder is not None:
            self._recorder.took(seqs)
        if self._keep:
            self.seqs[i] = seqs
        self._due -= 1

    def _ended(self, i: int, seq: Seq) -> None:
        for later in self._later[i]:
            arrival = self._arrivals[later]
            self._engine.kernel.spawn(
                self._follow(later, arrival.at_s, tuple(seq.tokens) if arrival.continues else ())
            )

    async def _follow(self, i: int, wait_s: float, said: Sequence[int]) -> None:
        await self._engine.kernel.sleep(wait_s)
        try:
            self._submit(i, said)
        except Exception as error:
            if not self._all_in.done:
                self._all_in.end(None, error)
            return
        if not self._due:
            self._all_in.set(None)


class _Then:
    """A sink that also tells when its sequence has ended."""

    def __init__(self, sink: Sink | None, ended: Callable[[Seq], None]) -> None:
        self._sink = sink
        self._ended = ended

    def prompt(self, seq: Seq, picks: Sequence[Pick]) -> None:
        if self._sink is not None:
            self._sink.prompt(seq, picks)

    def tokens(self, seq: Seq, picks: Sequence[Pick]) -> int | None:
        return self._sink.tokens(seq, picks) if self._sink is not None else None

    def finish(self, seq: Seq, reason: FinishReason, error: Exception | None) -> None:
        if self._sink is not None:
            self._sink.finish(seq, reason, error)
        self._ended(seq)


def run_load(
    engine: Server,
    at: Sequence[Arrival | float],
    requests: Sequence[Request],
    sinks: Sequence[Sink] | None = None,
) -> list[Seq]:
    """Serve a load to its end on the engine's kernel; returns its sequences, in the order of requests.

    at: when each comes, as an arrival or in seconds from now, ascending. requests: what each asks; one whose
    arrival continues another's text says only what it adds. Raises what `submit` raises for a request that is
    refused.
    """
    arrivals = [when if isinstance(when, Arrival) else Arrival(when, 1, 1) for when in at]
    offered = _Offer(engine, arrivals, requests, sinks)
    _serve(engine, offered)
    return [seq for i in range(len(arrivals)) for seq in offered.seqs[i]]


def offer(
    server: Server,
    arrivals: Sequence[Arrival],
    requests: Sequence[Request],
    recorder: Recorder | None = None,
) -> None:
    """The same, for loads whose sequences nobody wants but a recorder."""
    _serve(server, _Offer(server, arrivals, requests, keep=False, recorder=recorder))


def _serve(engine: Server, offer: _Offer) -> None:
    serving = engine.kernel.spawn(engine.run(), name="engine")
    try:
        engine.kernel.run(offer.run())
    finally:
        serving.cancel()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One simulated run: what happened when, in numbers, and what was derived for it.

    trace: its spans are there if they were to be kept. bounds: share of the devices' time by what bounds it.
    """

    trace: Trace
    summary: Summary
    settings: list[Setting]
    bounds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """In plain values: place, settings with their reasons, bounds, and each figure."""
        settings = [setting._asdict() for setting in self.settings]
        told = {"label": self.trace.label, "settings": settings, "bounds": self.bounds}
        return told | self.summary.to_dict()

    def table(self) -> Table:
        """Its figures, and a picture of when what ran, if its spans were kept."""
        figures, when = self.summary.table(), lanes_table("", lanes(phases(self.trace.spans)))
        return replace(figures, title=self.trace.label, text=when.text, svg=when.svg)

    def __rich__(self) -> Group:
        return self.table().__rich__()

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


class _Ended:
    """An observer that tells how many requests have been served, a thousand times at most."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._done, self.total = progress, 0, 0

    def on(self, span: Span) -> None:
        if span.kind == "finish":
            self._done += 1
            if self._done % max(1, self.total // 1000) == 0:
                self._progress("simulate", self._done, self.total)


def simulate(
    plan: Plan,
    load: Load,
    *,
    seed: int = 0,
    keep_spans: bool = True,
    slo: Slo | None = None,
    begun: bool = False,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
    record: Path | None = None,
) -> Report:
    """Serve a load on a simulated place. keep_spans=False: only figures, for loads of many requests.

    begun: requests come with their first token, to one engine. cluster: other than the plan's place says.
    progress: told of requests served. record: a run folder to write. Raises SpecError, CapacityError.
    """
    meter, ended = Meter(slo), _Ended(progress or (lambda phase, done, total: None))
    trace = Trace(f"simulated: {plan.on}", keep=None if keep_spans else 0, observers=[meter, ended])
    kernel = Kernel(seed=seed, trace=trace)
    engine, settings = open_simulated(plan, kernel, cluster=cluster)
    one = engine.engines[0] if isinstance(engine, Fleet) else engine
    trace.about = about(plan, max_len=engine.limits.max_len, block_size=one.kv.block_size)
    arrivals = load.arrivals(kernel.rng("load"))
    ended.total = len(arrivals)
    requests = SyntheticRequests(arrivals, engine.vocab_size, kernel.rng("prompts"))
    server: Server = engine
    if begun:
        assert isinstance(engine, Engine), "one engine takes them"
        server = Begun(engine)
    if record is None:
        offer(server, arrivals, requests)
    else:
        with Recorder(record, server, trace) as recorder:
            offer(server, arrivals, requests, recorder)
    return Report(
        trace=trace, summary=meter.summary(simulated=True), settings=settings, bounds=_bounds(engine)
    )


def _bounds(server: Engine | Fleet) -> dict[str, float]:
    spent_s: dict[str, float] = {}
    for engine in server.engines if isinstance(server, Fleet) else [server]:
        runner = engine.runner.inner if isinstance(engine.runner, ExpertRunner) else engine.runner
        assert isinstance(runner, SimulatedRunner)
        assert isinstance(runner.cost, ClusterCost)
        for name, seconds in runner.cost.spent_s.items():
            spent_s[name] = spent_s.get(name, 0.0) + seconds
    total_s = sum(spent_s.values()) or 1.0
    return {name: spent_s[name] / total_s for name in sorted(spent_s, key=spent_s.__getitem__, reverse=True)}
