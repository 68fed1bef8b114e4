"""From samples to the one description that prices read."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence

from lightwork.cluster.devices import Cluster, Curve, Device, Link, Memory, Unit
from lightwork.cluster.probe.levels import Level
from lightwork.cluster.probe.memory import cores, level_names
from lightwork.cluster.probe.samples import Sample
from lightwork.cluster.processor import instructions

ABSENT = "absent: needs numba"
STEP_S = 3e-4


def describe(samples: Sequence[Sample], levels: Sequence[Level], declared: Mapping[str, int]) -> Cluster:
    """The machine that was measured, every constant with its source."""
    named = {s.name: s for s in samples}
    unit, sources = _unit(named)
    memories = []
    for name, level in zip(level_names(levels), levels, strict=True):
        memories.append(_memory(name, level, named, declared, sources))
    if not levels:
        memories.append(_memory("memory", Level(bytes=None, latency_s=0.0), named, declared, sources))
        sources["memory.latency_s"] = ABSENT
    memories.append(_disk(named, sources))
    sources["step_s"] = "assumed: as the preset cpu"
    pipe = Link(
        name="inner",
        a="process",
        b="process",
        bytes_per_s=named["read/pipe/1"].median,
        latency_s=named["latency/pipe"].median,
    )
    return Cluster(
        device=Device(name="cpu", unit=unit, memories=tuple(memories), step_s=STEP_S, sources=sources),
        inner=pipe,
        sources={
            "inner": f"{named['read/pipe/1'].source}; latency with spread {named['latency/pipe'].spread:.0%}"
        },
    )


def _unit(named: Mapping[str, Sample]) -> tuple[Unit, dict[str, str]]:
    """Rates are those of the best number of rows; curves are shares of them."""
    rates: dict[str, float] = {}
    points: dict[str, list[tuple[int, float]]] = {}
    for name, sample in named.items():
        match name.split("/"):
            case ["rate", kind, dtype]:
                rates[f"{kind}/{dtype}"] = sample.median
            case ["rate", kind, dtype, rows]:
                points.setdefault(f"{kind}/{dtype}", []).append((int(rows), sample.median))
    curves: dict[str, Curve] = {}
    for key, seen in points.items():
        rates[key] = max(rate for _, rate in seen)
        curves[key] = tuple((rows, rate / rates[key]) for rows, rate in seen)
    call = next(named[n] for n in ("call/torch", "call/numba", "call/numpy") if n in named)
    measured = [s for n, s in named.items() if n.startswith("rate/")]
    swing = max(s.spread for s in measured)
    unit = Unit(
        name="cpu",
        count=cores(),
        rates=rates,
        launch_s=call.median,
        curve=curves["matmul/float32"],
        curves=curves,
        reads_once=True,
    )
    how = (
        f"measured: {measured[0].method}, others; median of {len(measured[0].values)}, spread to {swing:.0%}"
    )
    return unit, {
        "unit.count": "measured: cores this process may use",
        "unit.rates": f"{how}; {_narrow_types(rates)}",
        "unit.launch_s": call.source,
        "unit.curve": how,
        "unit.curves": how,
        "unit.tile_rows": "assumed: tiles are part of the measured curves",
        "unit.reads_once": "measured: our kernels, claim batchllm",
    }


def _narrow_types(rates: Mapping[str, float]) -> str:
    """What narrow types gain here, beside what the processor says it has."""
    plain = rates["matmul/float32"]
    gains = [
        f"{dtype} {rates[f'matmul/{dtype}'] / plain:.1f}x float32"
        for dtype in ("bfloat16", "int8")
        if f"matmul/{dtype}" in rates
    ]
    return f"{', '.join(gains) or 'float32 only'}; processor flags: {' '.join(instructions()) or 'unknown'}"


def _memory(
    name: str, level: Level, named: Mapping[str, Sample], declared: Mapping[str, int], sources: dict[str, str]
) -> Memory:
    """One level: its capacity as found, latency by chase, bandwidth of all cores together."""
    read, write = (
        named.get(f"{verb}/{name}/{cores()}") or named[f"{verb}/{name}/1"] for verb in ("read", "write")
    )
    sources[f"{name}.read_bytes_per_s"] = read.source
    sources[f"{name}.write_bytes_per_s"] = write.source
    chase = named.get(f"latency/{name}")
    if chase is not None:
        sources[f"{name}.latency_s"] = chase.source
    size = float(level.bytes or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    sources[f"{name}.bytes"] = "measured: what the system reports"
    if level.bytes is not None:
        said = f"; the system reports {declared[name] >> 10} KiB" if name in declared else ""
        sources[f"{name}.bytes"] = f"measured: largest footprint before latency climbs, per core{said}"
    return Memory(
        name=name,
        bytes=size,
        read_bytes_per_s=read.median,
        write_bytes_per_s=write.median,
        latency_s=chase.median if chase else level.latency_s,
    )


def _disk(named: Mapping[str, Sample], sources: dict[str, str]) -> Memory:
    read, write, latency = (named[n] for n in ("read/disk/1", "write/disk/1", "latency/disk"))
    sources["disk.bytes"] = "measured: free space where temporary files are"
    sources["disk.read_bytes_per_s"] = read.source
    sources["disk.write_bytes_per_s"] = write.source
    sources["disk.latency_s"] = latency.source
    return Memory(
        name="disk",
        bytes=float(shutil.disk_usage(tempfile.gettempdir()).free),
        read_bytes_per_s=read.median,
        write_bytes_per_s=write.median,
        latency_s=latency.median,
    )
