"""Machines by name. Each file describes one and has a function `cluster(num_devices)`; the folder is the
list.

To add a machine: one file, every constant with its source. `parse_place("sim:h100x16")` finds it by listing.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from pathlib import Path

from lightwork.cluster.devices import Cluster
from lightwork.errors import RangeError, SpecError

MAX_DEVICES = 1 << 20


def names() -> list[str]:
    return sorted(p.stem for p in Path(__file__).parent.glob("[!_]*.py"))


@cache
def parse_place(place: str) -> Cluster:
    """The cluster of a place like `sim:h100x8`.

    A preset, times how many devices. Raises SpecError, RangeError.
    """
    match = re.fullmatch(r"sim:([a-z][a-z0-9_]*?)(?:x(\d{1,9}))?", place)
    name = match.group(1) if match else ""
    if match is None or name not in names():
        from lightwork.techniques import nearest

        near = nearest(name or place.removeprefix("sim:"), names())
        raise SpecError(
            f"no simulated place is called {place[:60]!r}",
            expected=", ".join(f"sim:{n}" for n in names()),
            fix=f"sim:{near or 'h100'}x8",
        )
    num = int(match.group(2) or 1)
    if not 1 <= num <= MAX_DEVICES:
        raise RangeError(f"{place} has {num} devices", expected=f"1 to {MAX_DEVICES}")
    cluster: Cluster = import_module(f"lightwork.cluster.presets.{name}").cluster(num)
    return cluster
