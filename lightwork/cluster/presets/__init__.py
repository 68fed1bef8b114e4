"""Machines by name. Each file describes one and has a function `cluster(num_devices)`; the folder is the
list.

To add a machine: one file, every constant with its source. `parse_place("sim:h100x16")` finds it by listing.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import import_module
from pathlib import Path

from lightwork.cluster.devices import Cluster
from lightwork.errors import RangeError, SpecError

MAX_DEVICES = 1 << 20


def names() -> list[str]:
    return sorted(p.stem for p in Path(__file__).parent.glob("[!_]*.py"))


def parse_place(place: str) -> Cluster:
    """The cluster of a place like `sim:h100x8`: a preset, times how many devices.

    `sim:machine.json` is a description that `lightwork probe` wrote. Raises SpecError, RangeError.
    """
    return _read(place.removeprefix("sim:")) if place.endswith(".json") else _preset(place)


def _read(file: str) -> Cluster:
    try:
        return Cluster.from_dict(json.loads(Path(file).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise SpecError(
            f"{file[:200]} is not a readable machine description: {error}",
            expected="a file that lightwork probe wrote",
            fix=f"lightwork probe --save {file[:200]}",
        ) from error


@cache
def _preset(place: str) -> Cluster:
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
