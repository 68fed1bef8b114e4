"""Serve a recorded run again, and say whether its tokens and its decisions are the same.

FOLDER is what `--trace FOLDER` of serve or sim wrote. Requests come again when as much had happened, from the
plan in FOLDER/plan.toml: edit that to see what another one changes. Exit code 1 with the first difference.
"""

from __future__ import annotations

from pathlib import Path

import click

from lightwork.cli import _options
from lightwork.cli._plan_file import choose
from lightwork.cli._verbs import verb


@verb("lightwork run recorded", "lightwork run recorded --json")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@_options.as_json
def command(folder: Path, as_json: bool) -> int:
    from lightwork.cli._output import show_error, show_json
    from lightwork.runtime.progress import ProgressBar
    from lightwork.serve.rerun import rerun
    from lightwork.serve.run_folder import PLAN, read_run

    recorded = read_run(folder)
    plan = choose(str(folder / PLAN), None, (), "cpu").plan()
    with ProgressBar() as bar:
        again = rerun(recorded, plan, bar)
    differs = again.difference
    if as_json:
        told = {"label": again.trace.label, "requests": again.requests, "tokens": again.tokens}
        told |= {"events": again.events, "compared": again.compared, "why_not": again.why}
        show_json(told | {"difference": differs})
        return 1 if differs else 0
    print(f"{again.trace.label}: {again.requests} requests")
    if again.why:
        print(f"events  not compared: {again.why}")
    if differs is not None:
        places = f"\n  recorded: {differs.recorded}\n  now: {differs.now}"
        show_error("Differs", f"{differs.where} is not the same{places}")
        return 1
    print(f"tokens  {again.tokens}, the same")
    if again.compared:
        print(f"events  {again.events}, the same ({again.compared})")
    return 0
