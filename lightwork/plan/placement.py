"""Engines for prompts and for decodes: which sizes, and how many of each.

The search of DistServe ("DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language
Model Serving", 2024) for clusters whose links do not matter: either phase is tried alone, in all sizes. An
engine for prompts serves the load's first tokens; one for decodes gets requests that have theirs. How many
of each keep up with one another follows, so there are as many simulations as sizes, not as pairs of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import inf
from typing import Any, NamedTuple

from lightwork.errors import CapacityError
from lightwork.plan.capacity import Problem, capacity
from lightwork.serve.loads import Arrival
from lightwork.serve.metrics import Slo
from lightwork.serve.plan import Plan
from lightwork.serve.routers.prefill_decode import PrefillDecode


class Size(NamedTuple):
    """An engine of tp * pp devices, and the requests/s of the load whose phase it keeps up with."""

    tp: int
    pp: int
    rate: float

    @property
    def devices(self) -> int:
        return self.tp * self.pp


class Placement(NamedTuple):
    """rate: requests/s that all its engines are expected to sustain."""

    router: PrefillDecode
    devices: int
    rate: float


def placements(prefill: Sequence[Size], decode: Sequence[Size], devices: int) -> list[Placement]:
    """For any two sizes as many engines of each as keep up best, of at most so many devices; the best first,
    of equals those of fewer devices."""
    found = [best for a in prefill for b in decode if (best := _balanced(a, b, devices)) is not None]
    return sorted(found, key=lambda p: (-p.rate, p.devices))


def _balanced(prefill: Size, decode: Size, devices: int) -> Placement | None:
    best: Placement | None = None
    for n in range(1, devices // prefill.devices + 1):
        for m in range(1, (devices - n * prefill.devices) // decode.devices + 1):
            rate, used = min(n * prefill.rate, m * decode.rate), n * prefill.devices + m * decode.devices
            if best is None or (rate, -used) > (best.rate, -best.devices):
                router = PrefillDecode(
                    prefill=n,
                    decode=m,
                    prefill_tp=prefill.tp,
                    prefill_pp=prefill.pp,
                    decode_tp=decode.tp,
                    decode_pp=decode.pp,
                )
                best = Placement(router, used, rate)
    return best


def phases(
    problem: Problem,
    arrivals: Sequence[Arrival],
    splits: Sequence[tuple[int, int]],
    sized: Callable[[int, int], Plan],
    devices: int,
) -> tuple[list[Size], list[Size]]:
    """What engines of these sizes sustain of prompts, and of decodes: no more of these than so many devices
    can begin. sized: the plan of one engine.

    Of each phase the problem's share must be in time, as if one of them bound. Without a promise per token,
    the next is to come as soon as the first.
    """
    ttft_s, tpot_s = problem.slo
    first = replace(problem, slo=Slo(ttft_s, inf))
    further = replace(problem, slo=Slo(ttft_s, tpot_s if tpot_s < inf else ttft_s))
    prompts = [arrival._replace(output_len=1) for arrival in arrivals]
    prefill = [*_sustained(first, prompts, splits, sized)]
    most = max((size.rate / size.devices for size in prefill), default=0.0) * (devices - 1)
    return prefill, [*_sustained(further, arrivals, splits, sized, ceiling=most, begun=True)] if most else []


def _sustained(
    problem: Problem,
    arrivals: Sequence[Arrival],
    splits: Sequence[tuple[int, int]],
    sized: Callable[[int, int], Plan],
    **limits: Any,
) -> Iterator[Size]:
    for tp, pp in splits:
        one = replace(problem, plan=sized(tp, pp))
        try:
            yield Size(tp, pp, capacity(one, arrivals, rough=True, **limits).rate)
        except CapacityError:  # the weights do not fit, or no rate is served in time
            continue
