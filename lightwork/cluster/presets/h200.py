"""NVIDIA H200 SXM5 141 GB in HGX nodes."""

from __future__ import annotations

from lightwork.cluster.devices import Cluster, Memory, Unit
from lightwork.cluster.presets._gpu import NVLINK, NVLINK_SOURCE, gpu_nodes

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
    "inner.protocols": NVLINK_SOURCE,
    "outer": ("published: 400 Gbit/s NDR per device; 88 % reached"),
}


def cluster(num_devices: int) -> Cluster:
    """Nodes of eight."""
    unit = Unit(name="h200", count=132, rates=RATES, launch_s=2e-6, curve=CURVE, tile_rows=128)
    memory = Memory(
        name="memory",
        bytes=1.41e11,
        read_bytes_per_s=4.1e12,
        write_bytes_per_s=4.1e12,
        latency_s=3.64e-7,
    )
    return gpu_nodes(
        unit,
        memory,
        num_devices=num_devices,
        host_bytes_per_s=5e10,
        inner_bytes_per_s=3.71e11,
        inner_latency_s=6e-6,
        inner_protocols=NVLINK,
        outer_bytes_per_s=4.4e10,
        step_s=0.0025,
        sources=SOURCES,
        link_sources=LINK_SOURCES,
    )
