"""What GPU nodes of all makers have in common."""

from __future__ import annotations

from collections.abc import Mapping

from lightwork.cluster.devices import Cluster, Device, Link, Memory, Unit

PER_NODE = 8
HOST_BYTES = 128e9


def gpu_nodes(
    unit: Unit,
    memory: Memory,
    *,
    num_devices: int,
    host_bytes_per_s: float,
    inner_bytes_per_s: float,
    inner_latency_s: float,
    outer_bytes_per_s: float,
    step_s: float,
    sources: Mapping[str, str],
    link_sources: Mapping[str, str],
) -> Cluster:
    """Nodes of eight GPUs: a host memory behind each, one link between those of a node, one between nodes."""
    host = Memory(
        name="host",
        bytes=HOST_BYTES,
        read_bytes_per_s=host_bytes_per_s,
        write_bytes_per_s=host_bytes_per_s,
        latency_s=10e-6,
    )
    return Cluster(
        device=Device(name=unit.name, unit=unit, memories=(memory, host), step_s=step_s, sources=sources),
        num_devices=num_devices,
        per_node=PER_NODE,
        inner=Link(
            name="inner", a="device", b="device", bytes_per_s=inner_bytes_per_s, latency_s=inner_latency_s
        ),
        outer=Link(name="outer", a="node", b="node", bytes_per_s=outer_bytes_per_s, latency_s=15e-6),
        sources=link_sources,
    )
