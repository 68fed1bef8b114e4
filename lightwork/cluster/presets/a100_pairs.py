"""NVIDIA A100 80 GB whose NVLink joins pairs; PCIe joins the pairs of a server."""

from __future__ import annotations

from dataclasses import replace

from lightwork.cluster.devices import Cluster, Link
from lightwork.cluster.presets import a100
from lightwork.cluster.presets._gpu import NVLINK_SOURCE

LINK_SOURCES = {
    "inner": "published: NVLink bridge of the PCIe card, 300 GB/s per direction; 78 % reached, as in HGX",
    "inner.protocols": NVLINK_SOURCE,
    "outer": "published: PCIe 4.0 x16, 31.5 GB/s per direction; 80 % reached, through the host",
}


def cluster(num_devices: int) -> Cluster:
    """Nodes of two. The card is as fast as that of HGX nodes while its power allows it: assumed."""
    whole = a100.cluster(num_devices)
    outer = Link(name="outer", a="node", b="node", bytes_per_s=2.5e10, latency_s=1e-5)
    device = replace(whole.device, name="a100_pairs")
    return replace(whole, device=device, per_node=2, outer=outer, sources=LINK_SOURCES)
