"""List the published figures and what they came to here, or measure them again.

Without a name: all systems with their recorded verdicts. With names: measure again and print each figure
beside the published one. The exit code is 3 if one is missed.
"""

from __future__ import annotations

import click

from lightwork.claims import Verdict, built, measure
from lightwork.claims.results import load, provenance, save
from lightwork.claims.systems import system_named
from lightwork.cli import _completion, _options
from lightwork.cli._output import StatusLine, show_json, show_table
from lightwork.cli._verbs import verb

MISSED = 3


@verb("lightwork claims", "lightwork claims sarathi")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=_completion.system)
@click.option("--all", "everything", is_flag=True, help="Measure every system that is built.")
@click.option("--save", "record", is_flag=True, help="Rewrite the recorded verdicts of what was measured.")
@_options.as_json
def command(names: tuple[str, ...], everything: bool, record: bool, as_json: bool) -> int:
    if record and not (names or everything):
        raise click.UsageError("--save records what is measured: name systems, or --all")
    if not names and not everything:
        _list(as_json)
        return 0
    if record:
        load()  # a record that cannot be read is to be known before anything is measured
    chosen = built() if everything else [system_named(name).name for name in names]
    measured: dict[str, list[Verdict]] = {}
    with StatusLine() as status:
        for name in chosen:
            status(f"measuring {name}")
            measured[name] = measure(name)
    if record:
        save(measured, provenance())
    if as_json:
        show_json({name: [v.record() for v in verdicts] for name, verdicts in measured.items()})
    else:
        _print(measured)
    states = [v.state for verdicts in measured.values() for v in verdicts]
    return MISSED if "missed" in states else 0 if all(measured.values()) else 1


def _list(as_json: bool) -> None:
    standings = load()
    if as_json:
        show_json(standings)
        return
    rows = [(s.system.number, s.system.name, s.state, s.system.package, s.system.title) for s in standings]
    show_table(("#", "name", "verdict", "package", "system"), rows)


def _print(measured: dict[str, list[Verdict]]) -> None:
    for name, verdicts in measured.items():
        for verdict in verdicts:
            print(f"{name}  {verdict.line()}")
        if not verdicts:
            print(f"{name}  not built yet")
