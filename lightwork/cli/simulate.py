"""Let a population of agents play a game, here, on a cluster, or on simulated hosts.

GAME is a YAML, JSON or TOML file: who plays what (docs/tutorials/simulate.md). `--place local` is this
process, `process:2` two processes, `ray:2` two hosts of a Ray cluster, `sim:4` four simulated hosts in
virtual time. The rounds are the same wherever they are played with the same seed.
"""

from __future__ import annotations

import click

from lightwork.cli import _options
from lightwork.cli._verbs import verb


@verb(
    "lightwork simulate game.yaml",
    "lightwork simulate game.yaml --agents 1e6 --place sim:4 --json",
)
@click.argument("game", type=click.Path())
@click.option(
    "--agents", metavar="N", help="How many agents there are, instead of what GAME says: 5000, 1e6."
)
@click.option(
    "--place", default="local", show_default=True, help="local, process:N, ray:N[@ADDRESS] or sim:N."
)
@_options.seed
@click.option(
    "--trace", type=click.Path(), metavar="FILE", help="Write a Chrome trace of the groups' rounds."
)
@_options.as_json
def command(game: str, agents: str | None, place: str, seed: int, trace: str | None, as_json: bool) -> None:
    from pathlib import Path

    from lightwork.agents.number_game import Round
    from lightwork.agents.simulate import label, read_game, simulate, whole_number
    from lightwork.cli._output import show_json, show_table
    from lightwork.runtime.perfetto import write_chrome_trace
    from lightwork.runtime.progress import ProgressBar
    from lightwork.runtime.trace import Trace

    played = read_game(Path(game), agents=None if agents is None else whole_number(agents))
    kept = Trace(label(place)) if trace else None
    with ProgressBar() as bar:

        def watch(done: Round) -> None:
            bar("rounds", done.number, played.rounds)

        report = simulate(played, place, seed=seed, trace=kept, watch=watch)
    if kept is not None and trace:
        write_chrome_trace(Path(trace), [kept])
    rounds = [done.record() for done in report.rounds]
    if as_json:
        show_json({**report.figures(), "rounds": rounds})
        return
    show_table(tuple(rounds[0]), [tuple(row.values()) for row in rounds])
    print()
    show_table(("figure", "value"), [*report.figures().items()])
