"""Measure this machine: the rates that prices are made of, each with its source.

The result is a device that `--on` and the simulator understand.
"""

from __future__ import annotations

from pathlib import Path

import click

from lightwork.cli import _options
from lightwork.cli._output import StatusLine, show_json, show_table
from lightwork.cli._verbs import verb


@verb("lightwork probe", "lightwork probe --save machine.json")
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the device to this file."
)
@_options.as_json
def command(save: Path | None, as_json: bool) -> None:
    from lightwork.cluster.probe import probe

    with StatusLine() as status:
        status("probing this machine")
        device = probe()
