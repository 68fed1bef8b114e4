"""Devices at home that share a model and read their shares from disk: simulated, and as processes here."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import Any

import numpy as np

from lightwork.claims._random_llama import SPEC, random_llama
from lightwork.claims._streaming import timed_s
from lightwork.cluster.devices import Cluster, Device, Link, Memory, Unit
from lightwork.kernels.rows import Rows
from lightwork.memory.residencies import Residency
from lightwork.memory.residencies.sliding import Sliding
from lightwork.memory.streamed_stage import StreamedStage, open_streamed_stage
from lightwork.models import resolve
from lightwork.models.slices import slices
from lightwork.parallel.all_reduces.star import Star
from lightwork.serve.opening import own_cores
from lightwork.serve.workers import Allocate, Command, Forward, Workers, start_workers

DISK_BYTES_PER_S = 1.25e9
"""Assumed, so that the row of 34 billion parameters on 8 devices fits; the others are then predicted."""
WIRED = Link(name="wired", a="device", b="device", bytes_per_s=300e6 / 8, latency_s=1e-3)
WIRELESS = Link(name="wireless", a="device", b="device", bytes_per_s=300e6 / 8, latency_s=5e-3)
"""300 Mb/s, as the entry has it from memory; the latency of Wi-Fi is assumed."""
CPU = Unit(
    name="8 cores",
    count=8,
    rates={"matmul/float32": 200e9, "attention/float32": 100e9, "vector/float32": 20e9},
)
"""Assumed: laptops of 2024."""


def laptops(num: int, link: Link) -> Cluster:
    """So many laptops, with 8 GB and 20 GB/s of memory each."""
    memory = Memory(name="memory", bytes=8e9, read_bytes_per_s=20e9, write_bytes_per_s=20e9, latency_s=1e-7)
    disk = Memory(
        name="disk",
        bytes=1e12,
        read_bytes_per_s=DISK_BYTES_PER_S,
        write_bytes_per_s=DISK_BYTES_PER_S,
        latency_s=1e-4,
    )
    device = Device(name="laptop", unit=CPU, memories=(memory, disk))
    return Cluster(device=device, num_devices=num, per_node=num, inner=link)


# -- for real

RANKS, TIMES, BLOCK = 2, 7, 16
NEAR = Link(name="near", a="device", b="device", bytes_per_s=1e9, latency_s=1e-3)


def token_of(workers: Workers) -> Callable[[], Any]:
    """A step of one token."""
    rows = Rows.of_text(np.zeros(1, np.int64), BLOCK)
    done: SimpleQueue[tuple[list[Any], Exception | None]] = SimpleQueue()

    def ask(command: Command) -> Any:
        workers.ask(command, lambda parts, error: done.put((parts, error)))
        parts, error = done.get()
        if error is not None:
            raise error
        return parts[0]

    ask(Allocate(1, BLOCK, 0))
    return partial(ask, Forward(rows, ()))


def shares(policy: Residency[Any]) -> list[StreamedStage]:
    """The ranks' stages in this process, of which the files are read."""
    folder = resolve(random_llama())
    (row,) = slices(SPEC, 1, RANKS, master=True)
    return [open_streamed_stage(folder, mine, policy, Star(), dict) for mine in row]


def read_shares(stages: list[StreamedStage]) -> None:
    """What all ranks copy for a step, at once: they share this machine's disk."""

    def read(stage: StreamedStage) -> None:
        for item in stage.items:
            stage.fetch(stage.copy(item, 0))

    threads = [threading.Thread(target=read, args=(stage,)) for stage in stages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@cache
def token_over_the_longer() -> tuple[float, str]:
    """Time of a token over that of its reading, or of its computing and exchanging, whichever is longer: the
    median of several, each measured side by side; and how long these were."""
    start = partial(
        start_workers, random_llama(), tp=RANKS, pp=1, cores=own_cores(), all_reduce=Star(), between=NEAR
    )
    policy, ratios, reading, busy = Sliding(window=2), [], [], []
    stages = shares(policy)
    with closing(start(residency=policy)) as apart, closing(start()) as there:
        streamed, resident = token_of(apart), token_of(there)
        streamed()
        for _ in range(TIMES):
            streamed()  # the first of those that follow one another
            took_s = timed_s(streamed)
            reading.append(timed_s(partial(read_shares, stages)))
            busy.append(timed_s(resident))
            ratios.append(took_s / max(reading[-1], busy[-1]))
        here = max(held.resident_bytes / held.nbytes for held in apart.held)
    note = f"{min(ratios):.2f} to {max(ratios):.2f}; disk {median(reading):.2f} s, computing and exchanging "
    note += f"{median(busy):.2f} s, {here:.0%} of a rank's weights in memory"
    return median(ratios), note


def anonymous_bytes(status: str) -> int:
    """Memory of a process that is no file's, by what Linux says of it."""
    (line,) = (line for line in status.splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


def private_memory() -> tuple[float, str]:
    """Memory of a rank's process beyond that of one without a model, as a share of its weights: the largest;
    and each."""
    ask = "import lightwork.serve.worker; print(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    without = anonymous_bytes(done.stdout)
    policy = Sliding(window=2)
    with closing(start_workers(random_llama(), tp=RANKS, pp=1, cores=own_cores(), residency=policy)) as apart:
        token = token_of(apart)
        for _ in range(3):
            token()
        found = [
            anonymous_bytes(Path(f"/proc/{child.process.pid}/status").read_text()) - without
            for child in apart.children
        ]
        parts = [there / held.nbytes for there, held in zip(found, apart.held, strict=True)]
        slots = [held.resident_bytes / held.nbytes for held in apart.held]
    each = ", ".join(f"{part:.0%} with {slot:.0%} in slots" for part, slot in zip(parts, slots, strict=True))
    return max(parts), f"{each}; without a model {without / 1e6:.0f} MB"
