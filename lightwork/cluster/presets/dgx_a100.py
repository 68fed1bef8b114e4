"""NVIDIA A100 SXM4 80 GB in DGX nodes, whose host memory is reached as the SN40L publication says.

All but the host memory is as in a100.py, which has every GPU copy on a link of its own at once.
"""

from __future__ import annotations

from lightwork.cluster.devices import Cluster
from lightwork.cluster.presets import a100
from lightwork.cluster.presets._gpu import dgx


def cluster(num_devices: int) -> Cluster:
    """Nodes of eight."""
    return dgx(a100.cluster(num_devices), "dgx_a100", node_bytes_per_s=32e9)
