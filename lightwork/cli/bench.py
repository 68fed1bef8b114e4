"""Print lightwork against the engines people use, or compare two sets of techniques on the same requests.

Without A and B: the table against the peers as it was last measured, one row per cell with the best peer, and
the command that measures it again.

A and B are techniques, or several joined by `+`; `plain` is none. They run interleaved, outputs are proven
equal before times are compared, and the ratio is printed with its spread.

With `speculate` in place of A: every proposer, or those of B, beside plain decoding on the built-in models,
and what other programs came to on the same texts when they were last measured.
"""

from __future__ import annotations

import shlex

import click
from click.core import ParameterSource

from lightwork.cli import _completion, _options
from lightwork.cli._verbs import verb
from lightwork.errors import UsageError

SPECULATE = "speculate"


@verb(
    "lightwork bench",
    "lightwork bench 'Sarathi(chunk=256)' PrefillFirst",
    "lightwork bench 'Sarathi+Ngram(k=4)' plain --model tiny:llama --rounds 9",
    "lightwork bench speculate",
    "lightwork bench speculate 'Ngram(k=8)+DraftModel(k=8)' --rounds 9",
)
@click.argument("a", required=False, shell_complete=_completion.technique())
@click.argument("b", required=False, shell_complete=_completion.technique())
@click.option(
    "--model",
    default="tiny:llama",
    show_default=True,
    shell_complete=_completion.model,
    help="What is served.",
)
@_options.on("cpu", "Where it runs: cpu, cuda:0, or sim:... to compare in prediction.")
@_options.load("Poisson(rate=4)")
@click.option(
    "--rounds", type=click.IntRange(1, 1000), default=5, show_default=True, help="Rounds of A and B."
)
@_options.seed
@_options.as_json
def command(
    a: str | None,
    b: str | None,
    model: str,
    on: str | None,
    load: str,
    rounds: int,
    seed: int,
    as_json: bool,
) -> None:
    if a == SPECULATE:
        _speculate(b, rounds, as_json)
        return
    if a is None:
        _table(as_json)
        return
    if b is None:
        raise UsageError(
            f"only A is given, {a[:60]!r}",
            expected="A and B to compare, or neither for the table against the peers",
            fix=f"lightwork bench {a[:60]!r} plain",
        )
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


def _table(as_json: bool) -> None:
    """The table as it was measured. An option of a comparison would change nothing in it, and is refused."""
    from lightwork.claims.peers import load
    from lightwork.cli._peers import show_peers

    if other := _typed("as_json"):
        name, value = other
        raise UsageError(
            f"--{name} is of a comparison, and A and B are not given",
            expected="A and B with it, or no option but --json",
            fix=f"lightwork bench 'Sarathi(chunk=256)' PrefillFirst --{name} {value}",
        )
    show_peers(load(), as_json)


def _speculate(proposers: str | None, rounds: int, as_json: bool) -> None:
    """Proposers beside plain decoding. What they are asked, of which model, is fixed by the record."""
    if other := _typed("a", "b", "rounds", "as_json"):
        raise UsageError(
            f"--{other[0]} is of a comparison of A and B",
            expected=f"no option but --rounds and --json with {SPECULATE}",
            fix=f"lightwork bench {SPECULATE}",
        )
    from lightwork.cli._speculate import show_speculation

    show_speculation([p.strip() for p in proposers.split("+")] if proposers else (), rounds, as_json)


def _typed(*allowed: str) -> tuple[str, str] | None:
    """Name and value of an option that was given and is not among these."""
    context = click.get_current_context()
    for name, value in context.params.items():
        if name not in allowed and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            return name, shlex.quote(str(value))
    return None
