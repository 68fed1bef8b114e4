"""AMD MI250X in Frontier nodes, one device per graphics die."""

from __future__ import annotations

from lightwork.cluster.devices import Cluster, Memory, Unit
from lightwork.cluster.presets._gpu import gpu_nodes

RATES = {
    "matmul/bfloat16": 125e12,
    "attention/bfloat16": 75e12,  # assumed: 60 % of the matrix rate, as flash kernels
    "matmul/float16": 125e12,
    "matmul/float32": 35e12,
    "vector/float32": 20e12,
    "vector/bfloat16": 20e12,
    "vector/float16": 20e12,
}
CURVE = ((1, 0.30), (128, 0.75), (256, 0.88), (512, 0.95), (1024, 1.0))
SOURCES = {
    "unit.count": "published: AMD MI250X data sheet, 110 compute units per die",
    "unit.rates": "published: 191.5 TFLOP/s per die; GEMM libraries reach about 65 %",
    "unit.launch_s": (
        "assumed: kernels are queued ahead; a graph launch or an idle gap of about 2 microseconds"
    ),
    "unit.curve": "assumed: the shape of the A100 profiles",
    "unit.tile_rows": "published: 128-row tiles of the vendor libraries",
    "step_s": "assumed: scheduling, sampling and detokenising on the host, as 2023 Python engines",
    "memory.bytes": "published: 64 GB per die",
    "memory.read_bytes_per_s": "published: 1.6 TB/s per die; 82 % reached",
    "memory.write_bytes_per_s": "assumed: as reading",
    "memory.latency_s": "assumed: from pointer chases on MI200",
    "host.bytes": "assumed: 128 GB of host memory per device",
    "host.read_bytes_per_s": "published: PCIe, x16, of the generation; 80 % reached",
    "host.write_bytes_per_s": "assumed: as reading",
    "host.latency_s": "assumed: one PCIe round trip and a driver call",
}
LINK_SOURCES = {
    "inner": ("published: Infinity Fabric 50 GB/s per direction between packages; 80 % reached"),
    "outer": ("published: Slingshot 25 GB/s per NIC, one per package; 80 % reached"),
}


def cluster(num_devices: int) -> Cluster:
    """Nodes of eight."""
    unit = Unit(name="mi250x", count=110, rates=RATES, launch_s=2e-6, curve=CURVE, tile_rows=128)
    memory = Memory(
        name="memory",
        bytes=6.4e10,
        read_bytes_per_s=1.35e12,
        write_bytes_per_s=1.35e12,
        latency_s=6e-7,
    )
    return gpu_nodes(
        unit,
        memory,
        num_devices=num_devices,
        host_bytes_per_s=2.8e10,
        inner_bytes_per_s=4e10,
        inner_latency_s=1e-5,
        outer_bytes_per_s=2e10,
        step_s=0.004,
        sources=SOURCES,
        link_sources=LINK_SOURCES,
    )
