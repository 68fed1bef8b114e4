"""Machines described in one form, and the price of effects on them.

devices.py      `Device`, `Cluster` and their parts: frozen, every constant with its source
presets/        machines by name; `parse_place("sim:h100x8")`
pricing.py      `CostModel`: what an effect costs on a cluster; the only reader of bandwidths
calibration.py  a cost fitted to measured steps of this machine
processor.py    the processor's name, and the instructions it has
probe/          measures this machine and writes its description

To add a machine: one file in presets/. To add a kind of work: a rate "kind/dtype" in the presets that can
do it.
"""

from lightwork.cluster.devices import Cluster, Device, Link, Memory, Unit
from lightwork.cluster.presets import parse_place
from lightwork.cluster.pricing import CostModel

__all__ = ["Cluster", "CostModel", "Device", "Link", "Memory", "Unit", "parse_place"]
