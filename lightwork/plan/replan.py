"""Planning again when the load has changed, as DistServe does: engines on the same devices, but others.

What comes is held against what was planned for; when it differs, a search on the last requests says what
would serve them, and the engines are exchanged: those that run end what they have begun, the weights are
loaded, and what came meanwhile is served by the new ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import NamedTuple

from lightwork.cluster import parse_place
from lightwork.errors import CapacityError
from lightwork.models import read_shape
from lightwork.plan.capacity import Problem
from lightwork.runtime.effects import DTYPE_BYTES
from lightwork.runtime.futures import Task
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.engine import Engine
from lightwork.serve.fleet import Fleet
from lightwork.serve.loads import Arrival, Given
from lightwork.serve.metrics import Meter, Summary
from lightwork.serve.plan import Plan
from lightwork.serve.sequence import Request, Sink
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import SyntheticRequests, offer
from lightwork.serve.simulated import open_simulated

WINDOW, CHANGED = 200, 1.5
"""Requests that say what comes now, and how many times more or less of anything is another load."""
Search = Callable[[Problem], Plan]
LOOK_S, SEARCH_S, SETTLE_S = 5.0, 10.0, 60.0
"""Seconds from look to look, those that a search takes beside the engines, and until new ones are judged."""


class Profile(NamedTuple):
    """What a load is planned for: requests/s, and mean tokens of prompts and outputs. Of two at least."""

    rate: float
    prompt: float
    output: float

    @classmethod
    def of(cls, arrivals: Sequence[Arrival]) -> Profile:
        num, lasted_s = len(arrivals), arrivals[-1].at_s - arrivals[0].at_s
        prompt, output = sum(a.prompt_len for a in arrivals), sum(a.output_len for a in arrivals)
        return cls((num - 1) / max(lasted_s, 1e-6), prompt / num, output / num)

    def has_changed(self, now: Profile) -> bool:
        ratios = (self.rate / now.rate, self.prompt / now.prompt, self.output / now.output)
        return not all(1 / CHANGED <= ratio <= CHANGED for ratio in ratios)


class Watch:
    """Observes when the last requests came, and how long those were that ended last."""

    def __init__(self) -> None:
        self._came_s: deque[float] = deque(maxlen=WINDOW)
        self._ended: deque[tuple[int, int]] = deque(maxlen=WINDOW)
        self._prompts: dict[int, int] = {}

    def on(self, span: Span) -> None:
        if span.kind == "arrive" and span.args:
            self._came_s.append(span.start_s)
            self._prompts[int(span.name)] = int(span.args["prompt"])
        elif span.kind == "finish" and span.args:
            prompt = self._prompts.pop(int(span.name), 0)
            if prompt and span.args["output"]:
                self._ended.append((prompt, int(span.args["output"])))

    def recent(self) -> list[Arrival]:
        """As a load; none until there are enough to tell, nor while it is still changing."""
        if len(self._ended) < WINDOW:
            return []
        first_s = self._came_s[0]
        seen = [
            Arrival(at_s - first_s, *ended) for at_s, ended in zip(self._came_s, self._ended, strict=True)
        ]
        older, newer = (Profile.of(half) for half in (seen[: WINDOW // 2], seen[WINDOW // 2 :]))
        return [] if older.has_changed(newer) else seen


class Moving:
    """Engines that may be exchanged for others on the same devices; to callers one engine."""

    def __init__(self, kernel: Kernel, server: Engine | Fleet) -> None:
        self.kernel = kernel
        self._server = server
        self._old: list[Engine | Fleet] = []
        self._serving: Task | None = None

    @property
    def vocab_size(self) -> int:
        return self._server.vocab_size

    def submit(self, request: Request, sink: Sink | None = None) -> list[Seq]:
        return self._server.submit(request, sink)

    async def run(self) -> None:
        self._serving = self.kernel.spawn(self._server.run(), name="engines")
        await self.kernel.future("the end")

    async def drained(self) -> None:
        for server in (*self._old, self._server):
            await server.drained()

    async def move(self, server: Engine | Fleet, load_s: float) -> None:
        """Newcomers wait for the new engines, which begin when the old ones have ended and load_s is over."""
        old, self._server = self._server, server
        self._old.append(old)
        await old.drained()
        assert self._serving is not None
        self._serving.cancel()
        await self.kernel.sleep(load_s)
        self._serving = self.kernel.spawn(server.run(), name="engines")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replanned:
    """moves: when engines were exchanged, and for which."""

    summary: Summary
    moves: list[tuple[float, Plan]]


def simulate_replanned(
    problem: Problem,
    planned: Sequence[Arrival],
    comes: Sequence[Arrival],
    search: Search | None,
) -> Replanned:
    """Serve what comes with the problem's plan, which was made for what was planned, and plan again by
    `search` when that is another load; None: never. The figures are of what comes."""
    watch, meter, moves = Watch(), Meter(problem.slo), list[tuple[float, Plan]]()
    trace = Trace(f"simulated: {problem.plan.on}", keep=0, observers=[watch, meter])
    kernel, ids = Kernel(seed=problem.seed, trace=trace), count()
    first, _ = open_simulated(problem.plan, kernel, ids=ids)
    server = Moving(kernel, first)

    async def looking(search: Search) -> None:
        expected, plan = Profile.of(planned), problem.plan
        while True:
            await kernel.sleep(LOOK_S)
            recent = watch.recent()
            if not recent or not expected.has_changed(Profile.of(recent)):
                continue
            expected = Profile.of(recent)
            await kernel.sleep(SEARCH_S)
            with suppress(CapacityError):  # nothing serves that in time
                better = search(replace(problem, load=Given(recent)))
                if better != plan:
                    plan = better
                    moves.append((kernel.now(), plan))
                    await server.move(open_simulated(plan, kernel, ids=ids)[0], _load_s(plan))
                    await kernel.sleep(SETTLE_S)

    if search is not None:
        kernel.spawn(looking(search), name="looking")
    requests = SyntheticRequests(comes, server.vocab_size, kernel.rng("prompts"))
    offer(server, comes, requests)
    return Replanned(summary=meter.summary(simulated=True), moves=moves)


def _load_s(plan: Plan) -> float:
    """Seconds that the weights of one device take from its host, as if it held all of them."""
    host = parse_place(plan.on).device.memory("host")
    return read_shape(plan.model).num_params * DTYPE_BYTES["bfloat16"] / host.read_bytes_per_s
