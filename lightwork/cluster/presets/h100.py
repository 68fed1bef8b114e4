"""NVIDIA H100 SXM5 80 GB in HGX nodes."""

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
    "unit.count": "published: NVIDIA H100 white paper, 132 SMs",
    "unit.rates": (
        "published: layer profiles of Llama-2-7B shipped with Vidur: 400 TFLOP/s at 256 "
        "rows, 630 at 512, 730-770 above"
    ),
    "unit.launch_s": (
        "assumed: kernels are queued ahead; a graph launch or an idle gap of about 2 microseconds"
    ),
    "unit.curve": ("published: the same layer profiles; below 128 rows assumed, memory is the bound there"),
    "unit.tile_rows": "published: 128-row tiles of the vendor libraries",
    "step_s": "assumed: scheduling, sampling and detokenising on the host, as 2023 Python engines",
    "memory.bytes": "published: 80 GB",
    "memory.read_bytes_per_s": "published: the same profiles: 2.5-2.66 TB/s",
    "memory.write_bytes_per_s": "assumed: as reading",
    "memory.latency_s": (
        "published: pointer chase on H800 in 'Benchmarking and Dissecting the Nvidia Hopper GPU Architecture'"
    ),
    "host.bytes": "assumed: 128 GB of host memory per device",
    "host.read_bytes_per_s": "published: PCIe, x16, of the generation; 80 % reached",
    "host.write_bytes_per_s": "assumed: as reading",
    "host.latency_s": "assumed: one PCIe round trip and a driver call",
}
LINK_SOURCES = {
    "inner": ("published: ASTRA-sim validation on 8 H100: ring bus bandwidth 371 GB/s"),
    "inner.protocols": NVLINK_SOURCE,
    "outer": ("published: 400 Gbit/s NDR per device; 88 % reached"),
}


def cluster(num_devices: int) -> Cluster:
    """Nodes of eight."""
    unit = Unit(name="h100", count=132, rates=RATES, launch_s=2e-6, curve=CURVE, tile_rows=128)
    memory = Memory(
        name="memory",
        bytes=8e10,
        read_bytes_per_s=2.6e12,
        write_bytes_per_s=2.6e12,
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
