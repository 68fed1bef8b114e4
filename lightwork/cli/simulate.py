"""Let a population of agents play a game, here, on a cluster, or on simulated hosts.

GAME is a YAML, JSON or TOML file: who plays what (docs/tutorials/simulate.md). `--place local` is this
process, `process:2` two processes, `ray:2` two hosts of a Ray cluster, `sim:4` four simulated hosts in
virtual time. The rounds are the same wherever they are played with the same seed.
With --page agents are watched, paused and killed from a browser on this machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lightwork.cli import _options
from lightwork.cli._verbs import verb
from lightwork.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from lightwork.agents.number_game import NumberGame
    from lightwork.agents.simulate import Perform
    from lightwork.runtime.trace import Trace


@verb(
    "lightwork simulate game.yaml",
    "lightwork simulate game.yaml --agents 1e6 --place sim:4 --json",
    "lightwork simulate game.yaml --place process:2 --page",
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
    "--trace",
    type=click.Path(),
    metavar="PATH",
    help="Keep what happened: a FILE.json is a Chrome trace, any other name a folder, which large runs need.",
)
@click.option(
    "--page",
    is_flag=False,
    flag_value=0,
    type=click.IntRange(0, 65535),
    metavar="[PORT]",
    help="Serve a page for a browser on this machine; behind GAME. Any free port if none is said.",
)
@click.option(
    "--page-stays", is_flag=True, help="Serve it until Ctrl-C, and not only while the game goes on."
)
@_options.as_json
def command(
    game: str,
    agents: str | None,
    place: str,
    seed: int,
    trace: str | None,
    page: int | None,
    page_stays: bool,
    as_json: bool,
) -> None:
    from lightwork.agents.number_game import Round
    from lightwork.agents.simulate import read_game, simulate, whole_number
    from lightwork.cli._output import show_json, show_table
    from lightwork.runtime.progress import ProgressBar

    if page_stays and page is None:
        raise UsageError("--page-stays without --page", expected="both", fix="--page --page-stays")
    played = read_game(Path(game), agents=None if agents is None else whole_number(agents))
    with _kept(trace, played, place, seed, paged=page is not None) as kept, ProgressBar() as bar:

        def watch(done: Round) -> None:
            bar("rounds", done.number, played.rounds)

        perform = None
        if page is not None and kept is not None:
            perform = _paged(game, kept, page, keeps=trace is not None, stays=page_stays)
        report = simulate(played, place, seed=seed, trace=kept, watch=watch, perform=perform)
    rounds = [done.record() for done in report.rounds]
    if as_json:
        show_json({**report.figures(), "rounds": rounds})
        return
    show_table(tuple(rounds[0]), [tuple(row.values()) for row in rounds])
    print()
    show_table(("figure", "value"), [*report.figures().items()])


@contextmanager
def _kept(
    path: str | None, game: NumberGame, place: str, seed: int, *, paged: bool
) -> Iterator[Trace | None]:
    """The trace of a run, written when it ends, or in a folder while it goes on."""
    from lightwork.agents.simulate import about, label
    from lightwork.runtime.perfetto import write_chrome_trace
    from lightwork.runtime.trace import Trace
    from lightwork.serve.run_folder import EventsFile, trace_place

    file, folder = trace_place(path)
    if path is None:
        yield Trace(label(place), keep=0, calls=False) if paged else None
    elif file is not None:
        trace = Trace(label(place))
        yield trace
        write_chrome_trace(file, [trace])
    elif folder is not None:
        head = {"seed": seed, "about": about(game, place)}
        events = EventsFile(folder, label(place), head, flushed=False)
        try:
            yield Trace(label(place), keep=0, observers=[events])
        finally:
            events.close()


def _paged(game: str, trace: Trace, port: int, *, keeps: bool, stays: bool) -> Perform:
    try:
        from lightwork.web.monitor import Monitor
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "fastapi", "serve") from error
    return Monitor(Path(game).name, trace, port=port, keeps=keeps, stays=stays).perform
