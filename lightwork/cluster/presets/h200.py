"""NVIDIA H200 SXM5 141 GB in HGX nodes."""

from __future__ import annotations

from lightwork.cluster.devices import Cluster, Device, Link, Memory, Unit

RATES = {
    "matmul/bfloat16": 750e12,
    "attention/bfloat16": 450e12,  # assumed: 60 % of the matrix rate, as flash kernels
    "matmul/float16": 750e12,
    "matmul/float32": 320e12,
    "matmul/int8": 1450e12,
    "matmul/float8": 1450e12,
    "vector/float32": 55e12,
    "vector/bfloat16": 55e12,
    "vector/float16": 55e12,
}
CURVE = ((1, 0.15), (128, 0.30), (256, 0.53), (512, 0.84), (1024, 1.0))
SOURCES = {
    "unit.count": "published: NVIDIA H200 data sheet, 132 SMs",
    "unit.rates": "assumed: as the H100, whose compute die it has",
    "unit.launch_s": (
        "assumed: kernels are queued ahead; a graph launch or an idle gap of about 2 microseconds"
    ),
    "unit.curve": "assumed: as the H100",
    "unit.tile_rows": "published: 128-row tiles of the vendor libraries",
    "step_s": "assumed: scheduling, sampling and detokenising on the host, as 2023 Python engines",
    "memory.bytes": "published: 141 GB",
    "memory.read_bytes_per_s": "published: 4.8 TB/s; 85 % reached by streaming kernels",
    "memory.write_bytes_per_s": "assumed: as reading",
    "memory.latency_s": "assumed: as the H100",
    "host.bytes": "assumed: 128 GB of host memory per device",
    "host.read_bytes_per_s": "published: PCIe, x16, of the generation; 80 % reached",
    "host.write_bytes_per_s": "assumed: as reading",
    "host.latency_s": "assumed: one PCIe round trip and a driver call",
}
LINK_SOURCES = {
    "inner": ("assumed: as the H100, the same NVLink 4"),
    "outer": ("published: 400 Gbit/s NDR per device; 88 % reached"),
}


def cluster(num_devices: int) -> Cluster:
    """Nodes of 8 devices."""
    unit = Unit(name="h200", count=132, rates=RATES, launch_s=2e-6, curve=CURVE, tile_rows=128)
    main = Memory(
        name="memory", bytes=141e9, read_bytes_per_s=4.1e12, write_bytes_per_s=4.1e12, latency_s=364e-9
    )
    host = Memory(name="host", bytes=128e9, read_bytes_per_s=50e9, write_bytes_per_s=50e9, latency_s=10e-6)
    return Cluster(
        device=Device(name="h200", unit=unit, memories=(main, host), step_s=2.5e-3, sources=SOURCES),
        num_devices=num_devices,
        per_node=8,
        inner=Link(name="inner", a="device", b="device", bytes_per_s=371e9, latency_s=6e-6),
        outer=Link(name="outer", a="node", b="node", bytes_per_s=44e9, latency_s=15e-6),
        sources=LINK_SOURCES,
    )
