"""The highest rate of a load that a plan serves in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from typing import NamedTuple

from lightwork.errors import CapacityError, RangeError, SpecError
from lightwork.serve.loads import Arrival, Given, Load
from lightwork.serve.metrics import Slo
from lightwork.serve.plan import Plan
from lightwork.serve.simulate import Report, simulate

MOST_REQUESTS = 200_000
PRECISION = 0.05
"""Capacities are found to this share of themselves, and a better one must be better by as much."""
ROUGHLY, FEW_REQUESTS = 0.1, 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What to serve, where, and what is promised to whom.

    plan: model, place and the techniques that are fixed; one without a scheduler leaves it to the search.
    share: of the requests that must be served as promised.
    """

    plan: Plan
    load: Load
    slo: Slo
    share: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise RangeError(f"share is {self.share}", expected="above 0, at most 1", fix="0.9")
        if not min(self.slo) > 0 or self.slo.ttft_s == inf:
            raise RangeError(
                f"ttft {self.slo.ttft_s} s and tpot {self.slo.tpot_s} s are promised",
                expected="positive seconds, and without a ttft every rate would do",
                fix="--slo ttft=0.5,tpot=0.05",
            )


class Capacity(NamedTuple):
    """The highest rate a plan sustains, the share in time there, and its run: None if not above a floor."""

    rate: float
    share: float
    run: Report | None


def capacity(
    problem: Problem,
    arrivals: Sequence[Arrival],
    floor: float = 0.0,
    *,
    ceiling: float = inf,
    begun: bool = False,
    rough: bool = False,
) -> Capacity:
    """What a plan sustains, requests/s, up to a ceiling. begun: of requests that come with their first token.
    rough: to a tenth of itself, with few requests.

    Raises CapacityError if the model does not fit, or no rate is served in time; SpecError if it would take
    too many requests to tell.
    """
    best = Capacity(floor, 0.0, None)
    high, rate = inf, min(floor or rate_of(arrivals), ceiling)
    while high - best.rate > (ROUGHLY if rough else PRECISION) * best.rate and best.rate < ceiling:
        lasting = _at_rate(problem, arrivals, rate, FEW_REQUESTS if rough else None)
        run = _run(problem, lasting, begun)
        share = run.summary.num_within_slo / run.summary.num_requests
        if share >= problem.share:
            best = Capacity(rate, share, run)
        elif best.run is None and floor:
            return Capacity(floor, share, None)
        else:
            high = rate
        rate = min(2 * best.rate if high == inf else (best.rate + high) / 2, ceiling)
        if high * 64 < rate_of(arrivals):
            raise CapacityError(
                f"not even {high:.2g} requests/s are served in time", expected="some", fix="other sizes"
            )
    return best


def rate_of(arrivals: Sequence[Arrival]) -> float:
    """Requests per second, those that follow others included. Raises SpecError if all come at once."""
    return len(arrivals) / _span_s(arrivals)


def _span_s(arrivals: Sequence[Arrival]) -> float:
    span_s = max(a.at_s for a in arrivals if a.after is None)
    if span_s <= 0 or len(arrivals) < 2:
        raise SpecError(
            "all requests come at once",
            expected="a load whose requests come over time",
            fix="Poisson(rate=4, num_requests=256)",
        )
    return span_s


def _run(problem: Problem, lasting: Sequence[Arrival], begun: bool) -> Report:
    plan = replace(problem.plan, max_waiting=len(lasting) + 1)
    return simulate(plan, Given(lasting), seed=problem.seed, keep_spans=False, slo=problem.slo, begun=begun)


def _at_rate(problem: Problem, arrivals: Sequence[Arrival], rate: float, most: int | None) -> list[Arrival]:
    """The load drawn together to a rate, and repeated until a queue that grows has had time to show, but not
    beyond `most` requests.

    At a tenth too many requests per second the last of 20 ttft waits two of them.
    """
    promised = problem.slo
    output = sum(a.output_len for a in arrivals) / len(arrivals)
    lasting_s = 20 * promised.ttft_s + (5 * output * promised.tpot_s if promised.tpot_s < inf else 0.0)
    speed = rate / rate_of(arrivals)
    span_s = _span_s(arrivals) / speed
    times = max(1, ceil(lasting_s / span_s))
    if most is not None:
        times = min(times, ceil(most / len(arrivals)))
    if times * len(arrivals) > MOST_REQUESTS:
        raise SpecError(
            f"trying {rate:.3g} requests/s for {lasting_s:.3g} s takes {times * len(arrivals)} requests",
            expected=f"at most {MOST_REQUESTS}",
            fix="promise less time",
        )
    return [
        a._replace(at_s=i * span_s + a.at_s / speed)
        if a.after is None
        else a._replace(after=i * len(arrivals) + a.after)
        for i in range(times)
        for a in arrivals
    ]
