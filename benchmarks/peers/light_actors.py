"""The part `actors` of agents_peers.py: calls of actors here and elsewhere, and a round of a million.

A call is a request and its answer. What other processes use is counted: those of our places, and for Ray's
own actors all that it has started.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

from _report import report

from lightwork.runtime import Kernel, Sleep, WallClock
from lightwork.runtime.actors import Actors
from lightwork.runtime.garbage import rarely
from lightwork.runtime.places.process import Process
from lightwork.runtime.places.ray import Ray

ACTORS, CALLS, BATCH = 1000, 100_000, 1000
MEMORY = 100_000


class Adder:
    """The actor of all peers: adds what it is told."""

    __slots__ = ("total",)

    def __init__(self, total: int) -> None:
        self.total = total

    def add(self, number: int) -> int:
        self.total += number
        return self.total

    async def think(self, seconds: float) -> int:
        await Sleep(seconds)
        return self.total


class Inbox:
    """The usual actor of asyncio: a queue, and a task that takes from it."""

    def __init__(self, total: int) -> None:
        self.actor = Adder(total)
        self.queue: asyncio.Queue[tuple[int, asyncio.Future[int]]] = asyncio.Queue()
        self.task = asyncio.get_running_loop().create_task(self.run())

    async def run(self) -> None:
        while True:
            number, future = await self.queue.get()
            future.set_result(self.actor.add(number))

    def add(self, number: int) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((number, future))
        return future


def compare(options: argparse.Namespace) -> None:
    """All of it with Python's collector looking for garbage rarely, the peers' calls, too."""
    with rarely():
        _pairs("actor_call", "asyncio", options.pairs, _local, _asyncio)
    _memory()
    with rarely(), _processes([Process(), Process()]) as ours, _ray_actors() as theirs:
        _pairs("actor_call_elsewhere", "ray", options.pairs, ours, theirs, batch=BATCH)
    with rarely(), _processes([Process(), Process()]) as ours:
        _pairs(
            "actor_call_elsewhere",
            "agentscope",
            min(3, options.pairs),
            ours,
            _agentscope(options),
            batch=BATCH,
        )
    with rarely(), _ray_places() as ours, _ray_actors() as theirs:
        _pairs("actor_call_behind_ray", "ray", options.pairs, ours, theirs, batch=BATCH)
    command = [sys.executable, "-c", f"from peers.light_actors import million; million({options.agents})"]
    subprocess.run(command, check=True, cwd=Path(__file__).parent.parent, env={**os.environ})


def _pairs(
    name: str,
    peer: str,
    pairs: int,
    ours: Callable[[], float] | None,
    theirs: Callable[[], float] | None,
    **about: Any,
) -> None:
    """Both in turn, each after a run that is not counted."""
    if ours is None or theirs is None:
        report(name, peer=peer, absent=True)
        return
    ours(), theirs()
    taken = [(ours(), theirs()) for _ in range(pairs)]
    ratios = sorted(their / our for our, their in taken)
    report(
        name,
        peer=peer,
        us=round(median(our for our, _ in taken), 2),
        peer_us=round(median(their for _, their in taken), 2),
        ratio=round(median(ratios), 1),
        ratio_min=round(ratios[0], 1),
        ratio_max=round(ratios[-1], 1),
        pairs=pairs,
        **about,
    )


def _local() -> float:
    kernel = Kernel()
    actors = Actors(kernel)
    refs = [actors.create(Adder, i) for i in range(ACTORS)]

    async def main() -> float:
        begun = process_time()
        for _ in range(CALLS // BATCH):
            await kernel.gather(*(refs[i % ACTORS].add(1) for i in range(BATCH)))
        return process_time() - begun

    return 1e6 * float(kernel.run(main())) / CALLS


def _asyncio() -> float:
    async def main() -> float:
        actors = [Inbox(i) for i in range(ACTORS)]
        begun = process_time()
        for _ in range(CALLS // BATCH):
            await asyncio.gather(*(actors[i % ACTORS].add(1) for i in range(BATCH)))
        return process_time() - begun

    return 1e6 * asyncio.run(main()) / CALLS


def _memory() -> None:
    """Bytes of an idle actor that has been asked once, its entry in the table included, its handle not."""

    def ours() -> float:
        kernel = Kernel()
        actors = Actors(kernel)
        before, _ = tracemalloc.get_traced_memory()
        for i in range(MEMORY):
            actors.create(Adder, i % 100)
        kernel.run(kernel.gather(*(actors.ref(0, i << 8, Adder).add(1) for i in range(MEMORY))))
        gc.collect()
        return (tracemalloc.get_traced_memory()[0] - before) / MEMORY

    async def theirs() -> float:
        before, _ = tracemalloc.get_traced_memory()
        kept = [Inbox(i) for i in range(MEMORY)]
        await asyncio.gather(*(each.add(1) for each in kept))
        gc.collect()
        return (tracemalloc.get_traced_memory()[0] - before) / MEMORY

    tracemalloc.start()
    our, their = ours(), asyncio.run(theirs())
    tracemalloc.stop()
    report(
        "actor_bytes", peer="asyncio", bytes=round(our), peer_bytes=round(their), ratio=round(their / our, 1)
    )


@contextmanager
def _processes(places: list[Any]) -> Iterator[Callable[[], float]]:
    kernel = Kernel(WallClock())
    with Actors(kernel, places) as actors:
        refs = [actors.create(Adder, 0, on=places[i % len(places)]) for i in range(ACTORS)]

        async def main() -> float:
            pids = [place.pid for place in places]
            begun = process_time() + sum(map(_cpu_s, pids))
            for _ in range(CALLS // BATCH):
                await kernel.gather(*(refs[i % ACTORS].add(1) for i in range(BATCH)))
            return process_time() + sum(map(_cpu_s, pids)) - begun

        kernel.run(kernel.gather(*(ref.add(1) for ref in refs)))
        yield lambda: 1e6 * float(kernel.run(main())) / CALLS


@contextmanager
def _ray_places() -> Iterator[Callable[[], float] | None]:
    if not _has_ray():
        yield None
        return
    with _processes([Ray(), Ray()]) as ours:
        yield ours


class RayPeer:
    """Two actors of Ray (a thousand would take 50 GB), driven by a process of their own."""

    def __init__(self) -> None:
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
        )  # fmt: skip
        kind = ray.remote(num_cpus=0)(Adder)
        self.actors = [kind.remote(0) for _ in range(2)]

    def us_per_call(self) -> float:
        import ray

        begun, calls = tree_s(), CALLS // 20
        for _ in range(calls // 1000):
            ray.get([self.actors[i % 2].add.remote(1) for i in range(1000)])
        return 1e6 * (tree_s() - begun) / calls

    def end(self) -> None:
        import ray

        ray.shutdown()


@contextmanager
def _ray_actors() -> Iterator[Callable[[], float] | None]:
    if not _has_ray():
        yield None
        return
    kernel = Kernel(WallClock())
    place = Process("ray's driver")
    with Actors(kernel, [place]) as actors:
        peer = actors.create(RayPeer, on=place)
        yield lambda: float(kernel.run(kernel.gather(peer.us_per_call()))[0])
        kernel.run(kernel.gather(peer.end()))


def _has_ray() -> bool:
    try:
        import ray  # noqa: F401
    except ImportError:
        return False
    return True


def _agentscope(options: argparse.Namespace) -> Callable[[], float] | None:
    """Its servers, by its own Python; None if that is not there."""
    python = options.peers and options.peers / "agentscope" / "bin" / "python"
    if not python or not python.is_file():
        return None
    script = Path(__file__).with_name("run_agentscope.py")

    def theirs() -> float:
        told = subprocess.run([python, script], check=True, capture_output=True, text=True).stdout
        row = next(line for line in told.splitlines() if line.startswith("{"))  # beside its log
        return float(json.loads(row)["us_per_call"])

    return theirs


def million(n: int) -> None:
    """A round in which each of n actors thinks for a second, on the virtual clock; alone in its process."""
    kernel = Kernel()
    actors = Actors(kernel)
    begun = process_time()
    refs = [actors.create(Adder, 0) for _ in range(n)]
    created_s = process_time() - begun
    with rarely():
        begun = process_time()
        totals = kernel.run(kernel.gather(*[ref.think(1.0) for ref in refs]))
        round_s = process_time() - begun
    assert totals == [0] * n
    assert kernel.now() == 1.0
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    report(
        "million_actors", agents=n, create_s=round(created_s, 2), round_s=round(round_s, 2), peak_mb=peak_mb
    )


def tree_s() -> float:
    """CPU seconds of this process and its descendants so far."""
    found, todo = process_time(), [os.getpid()]
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    while todo:
        for pid in children.get(todo.pop(), []):
            todo.append(pid)
            found += _cpu_s(pid)
    return found


def _cpu_s(pid: int) -> float:
    try:
        fields = _stat(pid)
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """What the system says of a process, from its state on."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
