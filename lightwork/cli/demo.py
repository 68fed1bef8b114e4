"""See it work in half a minute: serve a tiny model, simulate the same requests, draw both.

Nothing is downloaded: the model is in the package.
"""

from __future__ import annotations

import click

from lightwork.cli import _options
from lightwork.cli._verbs import verb


@verb("lightwork demo", "lightwork demo --trace demo.json")
@click.option(
    "--trace", type=click.Path(dir_okay=False), help="Write both runs as one Chrome trace to this file."
)
@_options.seed
@_options.as_json
def command(trace: str | None, seed: int, as_json: bool) -> None:
    from lightwork.cli._demo import demo

    demo(trace=trace, seed=seed, as_json=as_json)
