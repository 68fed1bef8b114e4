"""Measure this machine: the rates that prices are made of, each with its source.

With --save, the description is written as JSON, for `--on sim:FILE`; a busy machine is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lightwork.cli import _options
from lightwork.cli._output import StatusLine, show_json, show_table
from lightwork.cli._verbs import verb
from lightwork.shown import readable, unit_of

if TYPE_CHECKING:
    from lightwork.cluster import Cluster


@verb("lightwork probe", "lightwork probe --save machine.json")
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the machine to this file."
)
@click.option("--force", is_flag=True, help="Write it even if the machine was too busy to measure well.")
@click.option("--quick", is_flag=True, help="Seconds instead of a minute, with fewer sizes and repeats.")
@_options.as_json
def command(save: Path | None, force: bool, quick: bool, as_json: bool) -> None:
    from lightwork.cluster.probe import probe

    with StatusLine() as status:
        machine = probe(save, quick=quick, force=force, progress=status)
    if as_json:
        show_json(machine.to_dict())
    else:
        print(f"{machine.device.name}: {machine.num_devices} of it, {machine.device.unit.count} units each")
        show_table(("constant", "value", "source"), list(constants(machine)))


def constants(machine: Cluster) -> Iterator[tuple[str, str, str]]:
    """Each constant of a machine: name, value in a readable unit, source."""
    device = machine.device
    for name, rate in device.unit.rates.items():
        yield f"unit.rates {name}", readable(rate, "op/s"), device.sources.get("unit.rates", "")
    parts = {"unit": device.unit, "": device} | {level.name: level for level in device.memories}
    for constant in device.constants():
        part, _, field = constant.rpartition(".")
        value = device.sharing[field] if part == "sharing" else getattr(parts[part], field)
        if isinstance(value, int | float):
            yield constant, readable(value, unit_of(field)), device.sources.get(constant, "")
    for link in (machine.inner, machine.outer):
        if link:
            source = machine.sources.get(link.name, "")
            yield f"{link.name}.bytes_per_s", readable(link.bytes_per_s, "B/s"), source
            yield f"{link.name}.latency_s", readable(link.latency_s, "s"), source
