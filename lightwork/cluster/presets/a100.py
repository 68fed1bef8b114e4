"""NVIDIA A100 SXM4 80 GB in HGX nodes."""

from __future__ import annotations

from lightwork.cluster.devices import Cluster, Memory, Unit
from lightwork.cluster.presets._gpu import NVLINK, NVLINK_SOURCE, cache, cache_sources, gpu_nodes

RATES = {
    "matmul/bfloat16": 232e12,
    "attention/bfloat16": 139.2e12,  # assumed: 60 % of the matrix rate, as flash kernels
    "matmul/float16": 232e12,
    "matmul/float32": 110e12,
    "matmul/int8": 460e12,
    "vector/float32": 17e12,
    "vector/bfloat16": 17e12,
    "vector/float16": 17e12,
}
CURVE = ((1, 0.35), (128, 0.80), (256, 0.89), (512, 0.96), (1024, 1.0))
CACHES = (cache("l1", 149 << 10, 1.95e13, 23.4e-9), cache("l2", 19_956 << 10, 7.2e12, 145.4e-9))
SHARING = {
    "memory": ((0.0, 0.0), (0.1, 0.2), (0.2, 0.3), (0.4, 0.8), (0.8, 0.85), (0.9, 0.95), (1.0, 1.0)),
    "network": ((0.0, 0.0), (0.1, 0.3), (0.2, 0.5), (0.8, 0.9), (0.9, 1.0), (1.0, 1.0)),
}
SOURCES = {
    **cache_sources(
        "published: NVIDIA A100 white paper, 128 bytes per clock and SM; at 1.41 GHz",
        "published: NVIDIA A100 white paper, 5,120 bytes per clock; at 1.41 GHz",
    ),
    "unit.count": "published: NVIDIA A100 white paper, 108 SMs",
    "unit.rates": (
        "published: layer profiles of Llama-2-7B shipped with Vidur: 206 TFLOP/s at 256 "
        "rows, 217-238 from 512 up"
    ),
    "unit.launch_s": (
        "assumed: kernels are queued ahead; a graph launch or an idle gap of about 2 microseconds"
    ),
    "unit.curve": ("published: the same layer profiles; below 128 rows assumed, memory is the bound there"),
    "unit.tile_rows": "published: 128-row tiles of the vendor libraries",
    "step_s": "assumed: scheduling, sampling and detokenising on the host, as 2023 Python engines",
    "sharing.memory": (
        "published: decode attention beside matrix products, in the NanoFlow publication: 0.3 at 0.2 and 0.8 "
        "at 0.4; 0.85 at 0.8 second-hand, the others remembered"
    ),
    "sharing.network": "assumed: that publication's row for collectives as remembered; not looked up",
    "memory.bytes": "published: 80 GB",
    "memory.read_bytes_per_s": "published: the same profiles: 1.46-1.56 TB/s at up to 64 rows",
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
    "inner": ("published: NVLink 3, 300 GB/s per direction; 78 % reached by collectives"),
    "inner.protocols": NVLINK_SOURCE,
    "outer": ("published: 200 Gbit/s HDR per device in reference nodes; 88 % reached"),
}


def cluster(num_devices: int) -> Cluster:
    """Nodes of eight."""
    unit = Unit(name="a100", count=108, rates=RATES, launch_s=2e-6, curve=CURVE, tile_rows=128)
    memory = Memory(
        name="memory",
        bytes=8e10,
        read_bytes_per_s=1.56e12,
        write_bytes_per_s=1.56e12,
        latency_s=3.98e-7,
    )
    return gpu_nodes(
        unit,
        memory,
        caches=CACHES,
        num_devices=num_devices,
        host_bytes_per_s=2.5e10,
        inner_bytes_per_s=2.35e11,
        inner_latency_s=8e-6,
        inner_protocols=NVLINK,
        outer_bytes_per_s=2.2e10,
        step_s=0.003,
        sharing=SHARING,
        sources=SOURCES,
        link_sources=LINK_SOURCES,
    )
