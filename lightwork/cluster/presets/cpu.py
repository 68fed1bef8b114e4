"""A two-core x86 server CPU with AVX-512, as assumed; `lightwork probe` measures the one you have."""

from __future__ import annotations

from lightwork.cluster.devices import Cluster, Device, Link, Memory, Unit

RATES = {"matmul/float32": 180e9, "matmul/bfloat16": 700e9, "matmul/int8": 1500e9, "vector/float32": 20e9}
CURVE = ((1, 0.05), (16, 0.4), (64, 0.8), (256, 1.0))
ASSUMED = "assumed: of the order of kernel timings on a two-core AVX-512 server, not a run of the probe"
SOURCES = {
    "unit.count": "measured: cores seen by the operating system",
    "unit.rates": ASSUMED,
    "unit.launch_s": "measured: one small torch operation from Python",
    "unit.curve": ASSUMED,
    "unit.tile_rows": "assumed: no visible tiles",
    "unit.reads_once": "measured: our kernels, claim batchllm",
    "step_s": "measured: an engine step with an empty model",
    "memory.bytes": "measured: what the operating system reports",
    "memory.read_bytes_per_s": ASSUMED,
    "memory.write_bytes_per_s": "assumed: half of reading",
    "memory.latency_s": ASSUMED,
}


def cluster(num_devices: int) -> Cluster:
    """One device per host; hosts are joined by Ethernet."""
    unit = Unit(name="cpu", count=2, rates=RATES, launch_s=6e-6, curve=CURVE, reads_once=True)
    main = Memory(name="memory", bytes=24e9, read_bytes_per_s=35e9, write_bytes_per_s=17e9, latency_s=130e-9)
    return Cluster(
        device=Device(name="cpu", unit=unit, memories=(main,), step_s=3e-4, sources=SOURCES),
        num_devices=num_devices,
        per_node=1,
        outer=Link(name="outer", a="node", b="node", bytes_per_s=1.1e9, latency_s=30e-6),
        sources={"outer": "assumed: 10 Gbit/s Ethernet, 88 % reached"},
    )
