"""Predict how a model would be served on machines you may not have.

The techniques are the files that `serve` runs; time is virtual, and every figure is labelled simulated. The
table names the bottleneck.
"""

from __future__ import annotations

import click

from lightwork.cli import _options
from lightwork.cli._plan_file import choose
from lightwork.cli._verbs import verb


@verb(
    "lightwork sim tiny:llama --on sim:a100x8",
    "lightwork sim hf:./model --on sim:h100x8 --use Sarathi --load 'Poisson(rate=4)' --trace out.json",
)
@click.argument("model")
@_options.use
@_options.on("sim:a100x8", "The simulated place: sim: and a preset, times how many.")
@_options.load
@_options.requests
@_options.seed
@_options.trace
@_options.as_json
def command(
    model: str,
    use: tuple[str, ...],
    on: str | None,
    load: str,
    requests: int,
    seed: int,
    trace: str | None,
    as_json: bool,
) -> None:
    from lightwork.serve.simulate import main

    chosen = choose(model, on, use, "sim:a100x8")
    main(
        chosen.model,
        use=chosen.use,
        on=chosen.on,
        load=load,
        requests=requests,
        seed=seed,
        trace=trace,
        as_json=as_json,
    )
