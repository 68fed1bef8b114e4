"""NVIDIA H800 PCIe 80 GB: Hopper with fewer multiprocessors, slower memory and slower links than an H100.

The machine of "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", 2024.
"""

from __future__ import annotations

from lightwork.cluster.devices import Cluster, Memory, Unit
from lightwork.cluster.presets._gpu import NVLINK, NVLINK_SOURCE, cache, cache_sources, gpu_nodes

RATES = {
    "matmul/bfloat16": 570e12,
    "attention/bfloat16": 342e12,  # assumed: 60 % of the matrix rate, as flash kernels
    "matmul/float16": 570e12,
    "matmul/float32": 245e12,
    "matmul/int8": 1100e12,
    "matmul/float8": 1100e12,
    "vector/float32": 42e12,
    "vector/bfloat16": 42e12,
    "vector/float16": 42e12,
}
CURVE = ((1, 0.15), (128, 0.30), (256, 0.53), (512, 0.84), (1024, 1.0))
CACHES = (cache("l1", 215 << 10, 2.56e13, 18.2e-9), cache("l2", 23_362 << 10, 9.0e12, 150.4e-9))
SOURCES = {
    **cache_sources(
        "assumed: 128 bytes per clock and SM, as the A100; at 1.755 GHz",
        "assumed: 5,120 bytes per clock, as the A100; at 1.755 GHz",
    ),
    "unit.count": "published: H800 PCIe, 114 SMs; the Hopper microbenchmarks start blocks in multiples of it",
    "unit.rates": "assumed: the H100's, times 114 of 132 SMs and 1.755 of 1.98 GHz",
    "unit.launch_s": (
        "assumed: kernels are queued ahead; a graph launch or an idle gap of about 2 microseconds"
    ),
    "unit.curve": "assumed: as the H100",
    "unit.tile_rows": "published: 128-row tiles of the vendor libraries",
    "step_s": "assumed: scheduling, sampling and detokenising on the host, as 2023 Python engines",
    "memory.bytes": "published: 80 GB",
    "memory.read_bytes_per_s": "assumed: 90 % of the published 2.04 TB/s",
    "memory.write_bytes_per_s": "assumed: as reading",
    "memory.latency_s": (
        "published: pointer chase in 'Benchmarking and Dissecting the Nvidia Hopper GPU Architecture'"
    ),
    "host.bytes": "assumed: 128 GB of host memory per device",
    "host.read_bytes_per_s": "published: PCIe, x16, of the generation; 80 % reached",
    "host.write_bytes_per_s": "assumed: as reading",
    "host.latency_s": "assumed: one PCIe round trip and a driver call",
}
LINK_SOURCES = {
    "inner": "published: NVLink limited to 400 GB/s, 200 per direction; 80 % reached",
    "inner.protocols": NVLINK_SOURCE,
    "outer": "published: 400 Gbit/s NDR per device; 88 % reached",
}


def cluster(num_devices: int) -> Cluster:
    """Nodes of eight."""
    unit = Unit(name="h800", count=114, rates=RATES, launch_s=2e-6, curve=CURVE, tile_rows=128)
    memory = Memory(
        name="memory",
        bytes=8e10,
        read_bytes_per_s=1.84e12,
        write_bytes_per_s=1.84e12,
        latency_s=3.64e-7,
    )
    return gpu_nodes(
        unit,
        memory,
        caches=CACHES,
        num_devices=num_devices,
        host_bytes_per_s=5e10,
        inner_bytes_per_s=1.6e11,
        inner_latency_s=6e-6,
        inner_protocols=NVLINK,
        outer_bytes_per_s=4.4e10,
        step_s=0.0025,
        sources=SOURCES,
        link_sources=LINK_SOURCES,
    )
