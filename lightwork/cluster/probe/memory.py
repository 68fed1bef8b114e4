"""Memory: pointer chases over growing footprints, streams over each level, a file that is not cached."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightwork.cluster.probe.levels import Level
from lightwork.cluster.probe.samples import Bench, Sample

LINE_BYTES = 64
SMALLEST_BYTES = 4 << 10
MAX_HOPS = 1 << 18
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chases(quick: bool) -> list[Bench]:
    """Dependent loads over a random cycle of cache lines, footprints growing by half, or double if quick."""
    if find_spec("numba") is None:
        return []
    from lightwork.cluster.probe import loops

    benches = []
    size = float(SMALLEST_BYTES)
    largest = (32 << 20) if quick else (128 << 20)
    while size <= largest:
        cycle = _cycle(int(size) // LINE_BYTES)
        hops = max(1 << 14, min(MAX_HOPS, len(cycle) // 8))
        walk = _Walk(loops.chase, cycle, hops)
        method = "pointer chase over a random cycle of 64-byte lines"
        name = f"chase/{int(size)}"
        benches.append(Bench(name=name, method=method, fn=walk, amount=hops, per_s=False))
        size *= 2.0 if quick else 1.5
    return benches


class _Walk:
    """Goes on where it stopped, so that a footprint larger than one repeat is covered all the same."""

    def __init__(self, chase: Any, cycle: NDArray[np.int64], hops: int) -> None:
        self._chase, self._cycle, self._hops = chase, cycle, hops
        self._at = 0
        for _ in range(0, min(len(cycle) // 8, 4 * MAX_HOPS), hops):
            self()

    def __call__(self) -> None:
        self._at = int(self._chase(self._cycle, self._at, self._hops))


def _cycle(lines: int) -> NDArray[np.int64]:
    """An array in which the first element of every line holds the place of another, all in one cycle."""
    order = np.random.default_rng(0).permutation(lines) * (LINE_BYTES // 8)
    cycle = np.zeros(lines * (LINE_BYTES // 8), np.int64)
    cycle[order] = np.roll(order, -1)
    return cycle


def footprints(samples: Sequence[Sample]) -> list[tuple[int, Sample]]:
    """The chases among samples, with their footprints in bytes."""
    return [(int(s.name.split("/")[1]), s) for s in samples if s.name.startswith("chase/")]


def plateaus(levels: Sequence[Level], samples: Sequence[Sample]) -> list[Sample]:
    """The latency of each level: in every round, the median of the footprints on its plateau."""
    chased = dict(footprints(samples))
    found = []
    for name, level in zip(level_names(levels), levels, strict=True):
        flat = [chased[size] for size in level.plateau]
        values = tuple(median(together) for together in zip(*(s.values for s in flat), strict=True))
        method = f"{flat[0].method}, {len(flat)} footprints"
        found.append(Sample(name=f"latency/{name}", method=method, values=values))
    return found


def streams(levels: Sequence[Level], quick: bool) -> list[Bench]:
    """Reading and writing each level from one core, and from all at once."""
    if find_spec("numba") is None:
        return _numpy_streams(quick)
    from lightwork.cluster.probe import loops

    loops.require_fast_regions()
    benches = []
    for name, level in zip(level_names(levels), levels, strict=True):
        for count in sorted({1, cores()}):
            largest = (32 << 20) if quick else (128 << 20)
            size = largest // count if level.bytes is None else level.bytes // 2
            data = np.zeros(size // 8 * count, np.int64)
            repeats = max(1, (1 << 20) // size)
            amount = float(data.nbytes * repeats)
            method = f"stream over {size >> 10} KiB on each of {count} cores"
            for verb, loop in (("read", loops.read), ("write", loops.write)):
                fn = _Stream(loop, data, repeats, count)
                benches.append(Bench(name=f"{verb}/{name}/{count}", method=method, fn=fn, amount=amount))
    return benches


class _Stream:
    def __init__(self, loop: Any, data: NDArray[np.int64], repeats: int, count: int) -> None:
        self._loop, self._data, self._repeats, self._count = loop, data, repeats, count

    def __call__(self) -> None:
        self._loop(self._data, self._repeats, self._count)


def _numpy_streams(quick: bool) -> list[Bench]:
    data = np.zeros((4 << 20) if quick else (16 << 20), np.int64)
    method = f"numpy over {data.nbytes >> 20} MiB on one core"
    return [
        Bench(name="read/memory/1", method=method, fn=data.max, amount=data.nbytes),
        Bench(name="write/memory/1", method=method, fn=lambda: data.fill(1), amount=data.nbytes),
    ]


def level_names(levels: Sequence[Level]) -> list[str]:
    """l1, l2, ... and memory."""
    return [f"l{i + 1}" for i in range(len(levels) - 1)] + ["memory"] * bool(levels)


def declared() -> dict[str, int]:
    """Bytes of each data cache of the first core as the system reports them; empty where it does not."""
    found: dict[str, int] = {}
    for folder in sorted(CACHES.glob("index*")):
        try:
            kind, size = ((folder / n).read_text(encoding="utf-8").strip() for n in ("type", "size"))
            level = (folder / "level").read_text(encoding="utf-8").strip()
        except OSError:
            continue
        if kind != "Instruction" and size.endswith("K"):
            found[f"l{level}"] = int(size[:-1]) << 10
    return found


@contextmanager
def file_benches(quick: bool) -> Iterator[list[Bench]]:
    """Writing a file to the disk and reading it back after the system forgot it."""
    size = (8 << 20) if quick else (64 << 20)
    data = np.random.default_rng(0).bytes(size)
    forget = getattr(os, "posix_fadvise", None)
    with tempfile.TemporaryFile(buffering=0) as file:
        descriptor = file.fileno()

        def drop() -> None:
            if forget is not None:
                forget(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

        def write() -> None:
            os.pwrite(descriptor, data, 0)
            os.fsync(descriptor)
            drop()

        def read() -> None:
            drop()
            at = 0
            while at < size and (got := len(os.pread(descriptor, 1 << 20, at))):
                at += got

        def touch() -> None:
            drop()
            os.pread(descriptor, 4096, size // 2)

        method = f"temporary file of {size >> 20} MiB, dropped from the page cache"
        yield [
            Bench(name="write/disk/1", method=method, fn=write, amount=size, once=True),
            Bench(name="read/disk/1", method=method, fn=read, amount=size, once=True),
            Bench(name="latency/disk", method="4 KiB of it", fn=touch, per_s=False, once=True),
        ]
