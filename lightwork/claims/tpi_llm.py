"""TPI-LLM: tensor parallelism over slow links, weights that come from disk. Sums over ranks by way of the
first one.

Real ranks are processes of this machine, their messages slowed down to a link of 5 ms and 100 MB/s. Weights
of 184 million parameters in bfloat16 are read from this machine's disk past the system's cache; one thread
computes.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import median

import torch

from lightwork.claims import Lab, Measured, claim
from lightwork.claims._streaming import forget, opened, over_the_longer, pass_of, share_in_cache, streaming
from lightwork.cluster.devices import Link
from lightwork.memory.residencies.sliding import Sliding
from lightwork.models.presets import preset
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


# -- weights from disk


@claim(
    "tpi_llm",
    title="a token over the longer of its computing and its disk, two blocks of 33 in memory",
    paper="no stall, or as long as the disk takes; our bar 1.15",
    expect=1.15,
    within=0.0,
    bound="at most",
    mode="real",
)
def token_over_the_longer(lab: Lab) -> Measured:
    return Measured(*over_the_longer(Sliding(window=2), 1))


@claim(
    "tpi_llm",
    title="share of the model that the system's cache holds while it is streamed",
    paper="- (memory is what is resident, in whichever way; our bar 0.05)",
    expect=0.05,
    within=0.0,
    bound="at most",
    mode="real",
    unit="",
)
def left_in_cache(lab: Lab) -> Measured:
    model = opened(Sliding(window=2), seed=1)
    weights = streaming(model)
    forget([weights.file.path])
    token = pass_of(model, 1)
    for _ in range(3):
        token()
    model.close()
    note = f"and {weights.arena.nbytes / model.nbytes:.0%} in its slots; direct reads: {weights.file.direct}"
    return Measured(share_in_cache(weights.file.path), note)


DEVICES, FLOAT_BYTES = 8, 4


@claim(
    "tpi_llm",
    title="weights in memory of the first of 8 devices with Llama-2-70B in float32, a window of 2 blocks",
    paper="3.1 GB in all, 90 % less (abstract)",
    expect=3.1,
    within=0.0,
    bound="at most",
    unit=" GB",
)
def memory_of_70b(lab: Lab) -> Measured:
    """The first device has the whole head, and no embedding but the rows that it looks up."""
    spec = preset("llama-2-70b")
    blocks = {
        "attention": spec.attention_params / DEVICES,
        "MLP": spec.mlp_params() / spec.num_layers / DEVICES,
        "head": spec.vocab_size * spec.hidden_size,
    }
    window = Sliding(window=2)
    note = ", ".join(f"{name} {FLOAT_BYTES * count / 1e9:.2f}" for name, count in blocks.items())
    return Measured(window.ring.slots * FLOAT_BYTES * max(blocks.values()) / 1e9, note)
