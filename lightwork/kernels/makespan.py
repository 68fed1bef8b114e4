"""How long a split of decode attention takes on a device: its runs on workers that take them in order.

A worker is one compute unit (a GPU's multiprocessor) with an even share of the device's arithmetic and
bandwidth. A kernel's runs queue for the workers, so the partial last wave, the idle workers of a small
batch and the one long sequence of a ragged one are what the queue makes of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightwork.cluster.devices import Device
from lightwork.cluster.presets import parse_place
from lightwork.cluster.pricing import CostModel
from lightwork.kernels.splits import Grid, Runs, Split
from lightwork.runtime import DTYPE_BYTES, Fifo, Kernel, Spawn, Use, Work

LOADS = 2
"""Memory latencies before a run computes in a head: block table and query, then its first tile."""
PARTIAL = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Makespan:
    """seconds: from the first launch to the last worker's end. share: of the workers' time in tiles."""

    seconds: float
    share: float


def makespan(split: Split, grid: Grid, place: str, *, head_size: int, dtype: str = "bfloat16") -> Makespan:
    """Simulate one decode step's attention of one layer, one query row per KV head.

    place: like sim:a100, whose units `grid.workers` should be. Raises SpecError.
    """
    cluster = parse_place(place)
    device = cluster.device
    worker = CostModel(replace(cluster, device=_worker(device, grid.workers)))
    latency_s = device.memory().latency_s
    runs = split.runs(grid)
    touched, parts = _parts(grid, runs)
    tile = Work(
        kind="attention",
        dtype=dtype,
        ops=4.0 * grid.tile * head_size,
        bytes=2.0 * grid.tile * head_size * DTYPE_BYTES[dtype],
        launches=0,
    )
    partial = Work(kind="copy", bytes=(head_size + 2.0) * DTYPE_BYTES[PARTIAL], launches=0)
    tile_s, partial_s = worker.seconds([tile]), worker.seconds([partial])
    computing = (runs[:, 1] - runs[:, 0]) * tile_s + touched * (LOADS * latency_s + partial_s)
    folding = np.asarray(LOADS * latency_s + parts[parts > 1] * partial_s, dtype=np.float64)
    seconds = _launched([computing, folding], grid.workers, device.unit.launch_s)
    ideal_s = grid.total * tile_s / grid.workers
    return Makespan(seconds=seconds, share=ideal_s / seconds if seconds else 1.0)


def _worker(device: Device, workers: int) -> Device:
    """One of `workers` equal parts of a device."""
    rates = {name: rate / workers for name, rate in device.unit.rates.items()}
    memories = tuple(
        replace(
            level,
            read_bytes_per_s=level.read_bytes_per_s / workers,
            write_bytes_per_s=level.write_bytes_per_s / workers,
        )
        for level in device.memories
    )
    return replace(device, unit=replace(device.unit, count=1, rates=rates), memories=memories)


def _parts(grid: Grid, runs: Runs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many heads each run touches, and how many runs each head is cut into."""
    ends = grid.first[1:][grid.tiles > 0]
    low = np.searchsorted(ends, runs[:, 0], side="right")
    high = np.searchsorted(ends, runs[:, 1], side="left")
    edges = np.zeros(len(ends) + 1, np.int64)
    np.add.at(edges, low, 1)
    np.add.at(edges, high + 1, -1)
    return high - low + 1, np.cumsum(edges)[:-1]


def _launched(kernels: Sequence[NDArray[np.float64]], workers: int, launch_s: float) -> float:
    """Seconds of kernels that follow one another; the blocks of each queue for the workers."""
    kernel = Kernel()
    units = Fifo("workers", servers=workers)

    async def block(seconds: float) -> None:
        await Use(units, seconds)

    async def step() -> None:
        for blocks in kernels:
            if len(blocks):
                await kernel.sleep(launch_s)
                running: list[Any] = [await Spawn(block(float(s))) for s in blocks]
                await kernel.gather(*running)

    kernel.run(step())
    return kernel.now()
