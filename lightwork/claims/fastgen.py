"""DeepSpeed-FastGen: passes of equal size, against prefill-first batching.

The publication's benchmark of Llama-2-70B on four A100, simulated: a closed loop of clients, prompts normal
around 2,600 tokens, answers around 128, deviation 30 %. A request succeeds if its first token comes within
prompt / 512 s and the moving average of its rate never falls below 4 tokens/s. Its weight is not published;
here a new gap counts a tenth. The baseline is our own prefill-first engine on the same runner and prices, so
only the technique differs; and once more with the host time a step that makes its throughput what is
published of the engine of 2023, 0.67 requests/s where one takes 9 s, which is six at a time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, pstdev
from tempfile import TemporaryDirectory

import numpy as np

from lightwork.claims import Lab, Measured, claim
from lightwork.claims._random_llama import random_llama
from lightwork.claims._real import serve
from lightwork.cluster import parse_place
from lightwork.runtime.trace import Span
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.lengths.normal import Normal
from lightwork.serve.loads import Load
from lightwork.serve.loads.burst import Burst
from lightwork.serve.loads.closed_loop import ClosedLoop
from lightwork.serve.metrics import RequestTimes, request_times
from lightwork.serve.plan import Plan
from lightwork.serve.routers.replicas import Replicas
from lightwork.serve.schedulers.prefill_first import PrefillFirst
from lightwork.serve.schedulers.split_fuse import SplitFuse
from lightwork.serve.simulate import simulate

Techniques = SplitFuse | PrefillFirst

LLAMA = Plan(model="shape:llama-2-70b", on="sim:a100x4", tp=4, pp=1, prefix_cache=False)
LENGTHS = Normal(prompt=2600, output=128, max_len=4096)
NUM_REQUESTS = 512
PROMPT_RATE = 512.0
RATE = 4.0
NEW_GAP = 0.1
ROUNDS = 5
TOKENS = 128
"""Of a pass, where it runs on a CPU: a hundred times slower than four A100, so shorter passes."""


@cache
def served(scheduler: Techniques, clients: int, seed: int, place: str = "") -> list[RequestTimes]:
    """The publication's load on its machine, simulated. place: another one, as its description."""
    load = ClosedLoop(clients=clients, num_requests=NUM_REQUESTS, lengths=LENGTHS)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "place.json"
        file.write_text(place, encoding="utf-8")
        plan = replace(LLAMA, use=(scheduler,), on=f"sim:{file}" if place else LLAMA.on)
        trace = simulate(plan, load, seed=seed).trace
    return list(request_times(trace.spans).values())


def p95_gap(times: Sequence[RequestTimes], percent: float = 95) -> float:
    gaps = [b - a for t in times for a, b in pairwise(t.tokens_s)]
    return float(np.percentile(gaps, percent))


def succeeds(times: RequestTimes) -> bool:
    """Whether a request got its first token and its rate as promised."""
    if not times.tokens_s or times.tokens_s[0] - times.arrived_s > times.prompt_len / PROMPT_RATE:
        return False
    average = 0.0
    for i, (a, b) in enumerate(pairwise(times.tokens_s)):
        average = b - a if i == 0 else (1 - NEW_GAP) * average + NEW_GAP * (b - a)
        if average > 1 / RATE:
            return False
    return True


def effective(times: Sequence[RequestTimes]) -> float:
    """Requests per second that succeeded."""
    last = max(t.tokens_s[-1] for t in times if t.tokens_s)
    return sum(map(succeeds, times)) / (last - min(t.arrived_s for t in times))


@claim(
    "fastgen",
    title="95th percentile of the time between tokens at 16 clients, prefill-first over SplitFuse",
    paper="3.7x lower",
    expect=3.7,
    within=0.3,
)
def tail(lab: Lab) -> Measured:
    ours, theirs = (served(s, 16, lab.seed) for s in (SplitFuse(), PrefillFirst()))
    middle = p95_gap(theirs, 50) / p95_gap(ours, 50)
    note = f"{p95_gap(theirs):.3f} against {p95_gap(ours):.3f} s; median {middle:.2f}x"
    return Measured(p95_gap(theirs) / p95_gap(ours), note)


@claim(
    "fastgen",
    title="effective throughput at 4 tokens/s and 20 clients, SplitFuse over prefill-first",
    paper="2.3x (1.42 against 0.63 requests/s), with the baseline's own overhead; our bar on equal engines",
    expect=2.0,
    within=0.0,
    bound="at least",
)
def effective_throughput(lab: Lab) -> Measured:
    ours, theirs = (effective(served(s, 20, lab.seed)) for s in (SplitFuse(), PrefillFirst()))
    best = [
        max(effective(served(s, n, lab.seed)) for n in (8, 16, 20, 32)) for s in (SplitFuse(), PrefillFirst())
    ]
    note = (
        f"{ours:.2f} against {theirs:.2f} requests/s; best of 8 to 32 clients each: {best[0] / best[1]:.2f}x"
    )
    return Measured(ours / max(theirs, 1e-3), note)


OF_2023, SIX = 0.67, 6


@cache
def _place_of_2023(seed: int) -> str:
    """A description of the machine whose host takes as long a step as makes six clients of prefill-first
    wait as published."""
    place = parse_place(LLAMA.on)

    def slowed(step_s: float) -> str:
        device = replace(place.device, step_s=step_s)
        return json.dumps(replace(place, device=device).to_dict())

    low, high = place.device.step_s, 0.2
    while high - low > 5e-4:
        middle = (low + high) / 2
        times = served(PrefillFirst(), SIX, seed, slowed(middle))
        rate = len(times) / (max(t.tokens_s[-1] for t in times) - min(t.arrived_s for t in times))
        low, high = (middle, high) if rate > OF_2023 else (low, middle)
    return slowed(high)


@claim(
    "fastgen",
    title="the same over prefill-first as slow as the engine of 2023 was with six clients",
    paper="2.3x (1.42 against 0.63 requests/s)",
    expect=2.3,
    within=0.3,
)
def effective_over_2023(lab: Lab) -> Measured:
    place = _place_of_2023(lab.seed)
    ours = effective(served(SplitFuse(), 20, lab.seed))
    theirs = effective(served(PrefillFirst(), 20, lab.seed, place))
    step_s = json.loads(place)["device"]["step_s"]
    note = f"{ours:.2f} against {theirs:.2f} requests/s, whose host takes {step_s * 1e3:.0f} ms a step"
    return Measured(ours / max(theirs, 1e-3), note)


@claim(
    "fastgen",
    title="throughput of 16 copies behind a balancer over one, 16 clients each",
    paper="16.2x (23.7 requests/s from 1.46)",
    expect=16.2,
    within=0.1,
)
def replicas(lab: Lab) -> Measured:
    one, many = (_throughput(copies, lab.seed) for copies in (1, 16))
    return Measured(many / one, f"{many:.1f} from {one:.2f} requests/s")


def _throughput(copies: int, seed: int) -> float:
    plan = replace(LLAMA, on=f"sim:a100x{4 * copies}", use=(SplitFuse(), Replicas(copies=copies)))
    load = ClosedLoop(clients=16 * copies, num_requests=128 * copies, lengths=LENGTHS)
    run = simulate(plan, load, seed=seed, keep_spans=False).summary
    return run.num_finished / run.duration_s


# -- for real


def _serve(scheduler: Techniques, load: Load, seed: int, model: str = "tiny:llama") -> list[Span]:
    trace, _ = serve(Plan(model=model, use=(scheduler,), prefix_cache=False), load, seed)
    return list(trace.spans)


def _rows(step: Span) -> int:
    assert step.args is not None
    return sum(count for _, _, count, _, _ in step.args["chunks"])


def _saturated(spans: Sequence[Span]) -> list[Span]:
    """The steps at whose end somebody still waits."""
    return [s for s in spans if s.kind == "step" and s.args is not None and s.args["waiting"]]


SATURATION = Burst(
    num_requests=64, lengths=Lognormal(prompt=256, output=32, prompt_sigma=0.5, output_sigma=0.5)
)


@claim(
    "fastgen",
    title="passes of exactly the budget while requests wait",
    paper="every pass has the same number of tokens; our bar",
    expect=0.95,
    within=0.0,
    bound="at least",
    mode="real",
    unit="",
)
def equal_passes(lab: Lab) -> Measured:
    steps = _saturated(_serve(SplitFuse(tokens=TOKENS), SATURATION, lab.seed))
    return Measured(sum(_rows(step) == TOKENS for step in steps) / len(steps), f"of {len(steps)} passes")


@claim(
    "fastgen",
    title="deviation of the time of a pass over its mean while requests wait",
    paper="consistent passes; our bar",
    expect=0.1,
    within=0.0,
    bound="at most",
    mode="real",
    unit="",
)
def steady_passes(lab: Lab) -> Measured:
    ours, theirs = (
        _serve(s, SATURATION, lab.seed, random_llama()) for s in (SplitFuse(tokens=TOKENS), PrefillFirst())
    )
    every = [span for span in theirs if span.kind == "step"]
    return Measured(_variation(_saturated(ours)), f"prefill-first, whole run: {_variation(every):.2f}")


def _variation(steps: Sequence[Span]) -> float:
    seconds = [step.end_s - step.start_s for step in steps]
    return pstdev(seconds) / mean(seconds)


@claim(
    "fastgen",
    title="95th percentile of the time between tokens, 8 clients on this CPU, prefill-first over SplitFuse",
    paper="our bar on a CPU",
    expect=3.0,
    within=0.0,
    bound="at least",
    mode="real",
)
def real_tail(lab: Lab) -> Measured:
    load = ClosedLoop(clients=8, num_requests=64, lengths=Normal(prompt=512, output=32))
    ratios, medians = [], []
    for i in range(ROUNDS):
        pair = [
            list(request_times(_serve(s, load, lab.seed + i)).values())
            for s in (SplitFuse(tokens=TOKENS), PrefillFirst())
        ]
        ratios.append(p95_gap(pair[1]) / p95_gap(pair[0]))
        medians.append(p95_gap(pair[1], 50) / p95_gap(pair[0], 50))
    return Measured(median(ratios), f"median gap {median(medians):.2f}x, n={ROUNDS}")
