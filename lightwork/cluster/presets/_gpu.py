"""What GPU nodes of all makers have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lightwork.cluster.devices import Cluster, Curve, Device, Link, Memory, Protocol, Unit

PER_NODE = 8
CACHE_SOURCES = {
    "bytes": "published: largest footprint at that latency in the Hopper microbenchmarks' pointer chase",
    "latency_s": "published: the same pointer chase",
    "write_bytes_per_s": "assumed: as reading",
}
HOST_BYTES = 128e9
NVLINK = (Protocol(6.6e-6, 0.6e-6, 1 / 4), Protocol(14e-6, 1.9e-6, 0.92), Protocol(8.4e-6, 3.4e-6, 1.0))
"""Rings over NVLink."""
NVLINK_SOURCE = (
    "published: the model by which NCCL 2.19 chooses (src/graph/tuning.cc): latencies of rings by LL, LL128 "
    "and Simple, and their shares of the bandwidth"
)


def cache(name: str, size: float, bytes_per_s: float, latency_s: float) -> Memory:
    """A cache that is written as fast as it is read. size: bytes, of an L1 those of one multiprocessor."""
    return Memory(
        name=name,
        bytes=size,
        read_bytes_per_s=bytes_per_s,
        write_bytes_per_s=bytes_per_s,
        latency_s=latency_s,
    )


def cache_sources(l1_bandwidth: str, l2_bandwidth: str) -> dict[str, str]:
    """Sources of an L1 and an L2; their bandwidths have their own."""
    found = {f"{level}.{field}": why for level in ("l1", "l2") for field, why in CACHE_SOURCES.items()}
    return found | {"l1.read_bytes_per_s": l1_bandwidth, "l2.read_bytes_per_s": l2_bandwidth}


def dgx(cluster: Cluster, name: str, *, node_bytes_per_s: float) -> Cluster:
    """The same GPUs as a server of 2 TB, of which host to device copies pass node_bytes_per_s in all."""
    device = cluster.device
    host = replace(
        device.memory("host"),
        bytes=2e12 / PER_NODE,
        read_bytes_per_s=node_bytes_per_s / PER_NODE,
        write_bytes_per_s=node_bytes_per_s / PER_NODE,
    )
    sources = {
        **device.sources,
        "host.bytes": "published: DGX data sheet, 2 TB of a node, an eighth for each device",
        "host.read_bytes_per_s": (
            f"published: 'SambaNova SN40L', 2024: {node_bytes_per_s / 1e9:.0f} GB/s from host to devices, "
            "which those of a node share"
        ),
        "host.write_bytes_per_s": "assumed: as reading",
    }
    memories = tuple(host if m.name == "host" else m for m in device.memories)
    named = replace(device, name=name, memories=memories, sources=sources)
    return replace(cluster, device=named)


def gpu_nodes(
    unit: Unit,
    memory: Memory,
    *,
    caches: tuple[Memory, ...] = (),
    num_devices: int,
    host_bytes_per_s: float,
    inner_bytes_per_s: float,
    inner_latency_s: float,
    inner_protocols: tuple[Protocol, ...] = (),
    outer_bytes_per_s: float,
    step_s: float,
    sharing: Mapping[str, Curve] | None = None,
    sources: Mapping[str, str],
    link_sources: Mapping[str, str],
) -> Cluster:
    """Nodes of eight GPUs: a host memory behind each, one link between those of a node, one between nodes.

    caches: inner to outer, where they have been measured.
    """
    host = Memory(
        name="host",
        bytes=HOST_BYTES,
        read_bytes_per_s=host_bytes_per_s,
        write_bytes_per_s=host_bytes_per_s,
        latency_s=10e-6,
    )
    return Cluster(
        device=Device(
            name=unit.name,
            unit=unit,
            memories=(*caches, memory, host),
            step_s=step_s,
            sharing=sharing or {},
            sources=sources,
        ),
        num_devices=num_devices,
        per_node=PER_NODE,
        inner=Link(
            name="inner",
            a="device",
            b="device",
            bytes_per_s=inner_bytes_per_s,
            latency_s=inner_latency_s,
            protocols=inner_protocols,
        ),
        outer=Link(name="outer", a="node", b="node", bytes_per_s=outer_bytes_per_s, latency_s=15e-6),
        sources=link_sources,
    )
