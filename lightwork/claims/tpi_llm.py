"""TPI-LLM: tensor parallelism over slow links. Sums over ranks by way of the first one.

Real ranks are processes of this machine, their messages slowed down to a link of 5 ms and 100 MB/s.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import median

import torch

from lightwork.claims import Lab, Measured, claim
from lightwork.cluster.devices import Link
from lightwork.parallel.all_reduces import AllReduce
from lightwork.parallel.all_reduces.ring import Ring
from lightwork.parallel.all_reduces.star import Star
from lightwork.parallel.processes import run_processes
from lightwork.runtime.effects import Compute
from lightwork.runtime.trace import Trace

RANKS = 4
LINK = Link(name="slow", a="device", b="device", bytes_per_s=100e6, latency_s=5e-3)
SMALL, LARGE = 32 << 10, 64 << 20
"""Bytes: a row of hidden states of a 70B model, and far more than one."""
TIMES = 15


async def sums(me: int, n: int, way: AllReduce, nbytes: int, times: int) -> None:
    """One after the other: none ends anywhere before all ranks have begun it."""
    x = torch.zeros(nbytes // 4)
    for _ in range(times):
        await way.sum(me, n, x)
        await Compute((), name="done")


def seconds(way: AllReduce, nbytes: int, times: int) -> float:
    """Of one sum on rank 0: the median."""
    trace = Trace("real")
    run_processes(sums, RANKS, way, nbytes, times, trace=trace, link=LINK)
    ends = [span.end_s for span in trace.spans if span.rank == "0" and span.name == "done"]
    return median(b - a for a, b in pairwise(ends))


@claim(
    "tpi_llm",
    title="time of a sum of 32 KB over four processes, 5 ms and 100 MB/s apart: star over ring",
    paper="two hops instead of 2(N - 1): a third",
    expect=1 / (RANKS - 1),
    within=0.2,
    mode="real",
)
def star_over_ring(lab: Lab) -> Measured:
    star_s, ring_s = seconds(Star(), SMALL, TIMES), seconds(Ring(), SMALL, TIMES)
    return Measured(star_s / ring_s, f"{1e3 * star_s:.1f} against {1e3 * ring_s:.1f} ms")


@claim(
    "tpi_llm",
    title="the same for 64 MB",
    paper="the ring wins",
    expect=1.0,
    within=0.0,
    bound="at least",
    mode="real",
)
def ring_for_much(lab: Lab) -> Measured:
    star_s, ring_s = seconds(Star(), LARGE, 5), seconds(Ring(), LARGE, 5)
    return Measured(star_s / ring_s, f"{1e3 * star_s:.0f} against {1e3 * ring_s:.0f} ms")
