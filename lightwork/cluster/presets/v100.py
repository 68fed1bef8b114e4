"""NVIDIA V100 SXM2 32 GB in DGX-1 nodes."""

from __future__ import annotations

from lightwork.cluster.devices import Cluster, Memory, Unit
from lightwork.cluster.presets._gpu import NVLINK, NVLINK_SOURCE, gpu_nodes

RATES = {
    "matmul/float16": 95e12,
    "attention/float16": 57e12,  # assumed: 60 % of the matrix rate, as flash kernels
    "matmul/float32": 13.5e12,
    "vector/float32": 14e12,
    "vector/bfloat16": 14e12,
    "vector/float16": 14e12,
}
CURVE = ((1, 0.30), (128, 0.75), (256, 0.88), (512, 0.95), (1024, 1.0))
SOURCES = {
    "unit.count": "published: NVIDIA V100 data sheet, 80 SMs",
    "unit.rates": "published: 125 TFLOP/s dense fp16, of which GEMM libraries reach about 76 %",
    "unit.launch_s": (
        "assumed: kernels are queued ahead; a graph launch or an idle gap of about 2 microseconds"
    ),
    "unit.curve": "assumed: the shape of the A100 profiles",
    "unit.tile_rows": "published: 128-row tiles of the vendor libraries",
    "step_s": "assumed: scheduling, sampling and detokenising on the host, as 2023 Python engines",
    "memory.bytes": "published: 32 GB",
    "memory.read_bytes_per_s": "published: 900 GB/s; streaming kernels reach about 88 %",
    "memory.write_bytes_per_s": "assumed: as reading",
    "memory.latency_s": "published: pointer chase in microbenchmark studies of Volta",
    "host.bytes": "assumed: 128 GB of host memory per device",
    "host.read_bytes_per_s": "published: PCIe, x16, of the generation; 80 % reached",
    "host.write_bytes_per_s": "assumed: as reading",
    "host.latency_s": "assumed: one PCIe round trip and a driver call",
}
LINK_SOURCES = {
    "inner": ("published: NVLink 2, 150 GB/s per direction; 87 % reached by collectives"),
    "inner.protocols": NVLINK_SOURCE,
    "outer": ("assumed: one 100 Gbit/s NIC per device, 88 % reached"),
}


def cluster(num_devices: int) -> Cluster:
    """Nodes of eight."""
    unit = Unit(name="v100", count=80, rates=RATES, launch_s=2e-6, curve=CURVE, tile_rows=128)
    memory = Memory(
        name="memory",
        bytes=3.2e10,
        read_bytes_per_s=7.9e11,
        write_bytes_per_s=7.9e11,
        latency_s=4.5e-7,
    )
    return gpu_nodes(
        unit,
        memory,
        num_devices=num_devices,
        host_bytes_per_s=1.2e10,
        inner_bytes_per_s=1.3e11,
        inner_latency_s=8e-6,
        inner_protocols=NVLINK,
        outer_bytes_per_s=1.1e10,
        step_s=0.005,
        sources=SOURCES,
        link_sources=LINK_SOURCES,
    )
