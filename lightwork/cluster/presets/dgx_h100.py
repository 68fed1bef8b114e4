"""NVIDIA H100 SXM5 80 GB in DGX nodes, whose host memory is reached as the SN40L publication says.

All but the host memory is as in h100.py, which has every GPU copy on a link of its own at once.
"""

from __future__ import annotations

from lightwork.cluster.devices import Cluster
from lightwork.cluster.presets import h100
from lightwork.cluster.presets._gpu import dgx


def cluster(num_devices: int) -> Cluster:
    """Nodes of eight."""
    return dgx(h100.cluster(num_devices), "dgx_h100", node_bytes_per_s=64e9)
