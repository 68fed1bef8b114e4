"""NVIDIA A10 24 GB, PCIe."""

from __future__ import annotations

from lightwork.cluster.devices import Cluster, Memory, Unit
from lightwork.cluster.presets._gpu import gpu_nodes

RATES = {
    "matmul/bfloat16": 70e12,
    "attention/bfloat16": 42e12,  # assumed: 60 % of the matrix rate, as flash kernels
    "matmul/float16": 70e12,
    "matmul/float32": 20e12,
    "matmul/int8": 140e12,
    "vector/float32": 25e12,
    "vector/bfloat16": 25e12,
    "vector/float16": 25e12,
}
CURVE = ((1, 0.35), (128, 0.80), (256, 0.89), (512, 0.96), (1024, 1.0))
SOURCES = {
    "unit.count": "published: NVIDIA A10 data sheet, 72 SMs",
    "unit.rates": "published: 125 TFLOP/s dense bf16; assumed: 56 % reached, at the clock that 150 W allow",
    "unit.launch_s": (
        "assumed: kernels are queued ahead; a graph launch or an idle gap of about 2 microseconds"
    ),
    "unit.curve": "assumed: the shape of the A100 profiles",
    "unit.tile_rows": "published: 128-row tiles of the vendor libraries",
    "step_s": "assumed: scheduling, sampling and detokenising on the host, as 2023 Python engines",
    "memory.bytes": "published: 24 GB",
    "memory.read_bytes_per_s": "published: 600 GB/s; assumed: streaming kernels reach 85 %",
    "memory.write_bytes_per_s": "assumed: as reading",
    "memory.latency_s": "assumed: as the A100's",
    "host.bytes": "assumed: 128 GB of host memory per device",
    "host.read_bytes_per_s": "published: PCIe 4, x16; 80 % reached",
    "host.write_bytes_per_s": "assumed: as reading",
    "host.latency_s": "assumed: one PCIe round trip and a driver call",
}
LINK_SOURCES = {
    "inner": "published: PCIe 4, x16, between devices of a node; 80 % reached",
    "outer": "assumed: one 100 Gbit/s NIC per device, 88 % reached",
}


def cluster(num_devices: int) -> Cluster:
    """Nodes of eight."""
    unit = Unit(name="a10", count=72, rates=RATES, launch_s=2e-6, curve=CURVE, tile_rows=128)
    memory = Memory(
        name="memory",
        bytes=2.4e10,
        read_bytes_per_s=5.1e11,
        write_bytes_per_s=5.1e11,
        latency_s=4e-7,
    )
    return gpu_nodes(
        unit,
        memory,
        num_devices=num_devices,
        host_bytes_per_s=2.5e10,
        inner_bytes_per_s=2.5e10,
        inner_latency_s=10e-6,
        outer_bytes_per_s=1.1e10,
        step_s=0.003,
        sources=SOURCES,
        link_sources=LINK_SOURCES,
    )
