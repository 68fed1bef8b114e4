"""Compare two sets of techniques on the same requests, interleaved: the ratio with its spread.

A and B are techniques, or several joined by `+`; `plain` is none. Outputs are proven equal before times are
compared.
"""

from __future__ import annotations

import click

from lightwork.cli import _options
from lightwork.cli._verbs import verb


@verb(
    "lightwork bench 'Sarathi(chunk=256)' PrefillFirst",
    "lightwork bench 'Sarathi+Ngram(k=4)' plain --model tiny:llama --rounds 9",
)
@click.argument("a")
@click.argument("b")
@click.option("--model", default="tiny:llama", show_default=True, help="What is served.")
@_options.on("cpu", "Where it runs: cpu, cuda:0, or sim:... to compare in prediction.")
@_options.load
@click.option(
    "--rounds", type=click.IntRange(1, 1000), default=5, show_default=True, help="Rounds of A and B."
)
@_options.seed
@_options.as_json
def command(
    a: str,
    b: str,
    model: str,
    on: str | None,
    load: str,
    rounds: int,
    seed: int,
    as_json: bool,
) -> None:
    from lightwork.cli._bench import bench

    bench(
        a,
        b,
        model=model,
        on=on or "cpu",
        load=load,
        rounds=rounds,
        seed=seed,
        as_json=as_json,
    )
