"""Show a saved trace: what each rank did, and a picture of when.

RUN is what `--trace` writes, a Chrome trace or a run folder. Times are real or simulated, as the trace says.
With --page it is shown in a browser instead, by a server on this machine alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lightwork.cli import _options
from lightwork.cli._output import paint, show_json, show_table
from lightwork.cli._verbs import verb
from lightwork.errors import MissingExtraError, SpecError, UsageError
from lightwork.runtime.timeline import Lane, coloured, draw, in_units, lanes, letters, ruler

if TYPE_CHECKING:
    from lightwork.runtime.trace import Trace

MAX_FILE_BYTES = 1 << 30


@verb("lightwork trace out.json --page", "lightwork trace recorded --lanes 4 --width 60")
@click.argument("file", metavar="RUN", type=click.Path(exists=True, path_type=Path))
@click.option("--lanes", "most", type=click.IntRange(1), default=32, show_default=True, help="Lanes to show.")
@click.option(
    "--width", type=click.IntRange(10, 1000), help="Characters of the picture; unset, the terminal's."
)
@click.option("--page", is_flag=True, help="Serve it as a page for a browser, until Ctrl-C.")
@_options.as_json
def command(file: Path, most: int, width: int | None, page: bool, as_json: bool) -> None:
    from lightwork.serve.run_folder import read_traces

    if file.stat().st_size > MAX_FILE_BYTES:
        raise SpecError(f"{file.name} has {file.stat().st_size} bytes", expected=f"at most {MAX_FILE_BYTES}")
    if page and as_json:
        raise UsageError("--page prints nothing for machines", expected="--page or --json")
    if page:
        _page(file)
        return
    runs = read_traces(file)
    if as_json:
        show_json([{"label": t.label, "lanes": [_summary(lane) for lane in lanes(t.spans)]} for t in runs])
        return
    for trace in runs:
        _show(trace, most, width)


def _page(file: Path) -> None:
    try:
        from lightwork.web.routes import show
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "fastapi", "serve") from error
    show(file)


def _show(trace: Trace, most: int, width: int | None) -> None:
    """Print one run: a table of its lanes, and their picture."""
    found = lanes(trace.spans)
    print(f"{trace.label}: {len(trace.spans)} spans")
    if not found:
        return
    start_s = min(lane.spans[0].start_s for lane in found)
    end_s = max(span.end_s for lane in found for span in lane.spans)
    rows = []
    for lane in found[:most]:
        share = f"{lane.busy_s / (end_s - start_s):.0%}" if end_s > start_s else "-"
        rows.append((lane.rank, len(lane.spans), in_units(lane.busy_s), share, lane.mostly))
    show_table(("rank", "spans", "busy", "share", "mostly"), rows)
    print()
    picture(found[:most], start_s, end_s, width)
    if len(found) > most:
        print(f"{len(found) - most} more ranks: --lanes {len(found)}")
    print()


def picture(shown: list[Lane], start_s: float, end_s: float, width: int | None) -> None:
    """Print the lanes, the axis and what the letters mean."""
    label = max(len(lane.rank) for lane in shown) + 2
    if width is None:
        from shutil import get_terminal_size

        width = max(10, min(160, get_terminal_size().columns - label - 1))
    letter = letters(shown)
    in_colour = paint("", "1", sys.stdout) != ""
    for lane in shown:
        line = draw(lane, letter, start_s, end_s, width)
        print(lane.rank.ljust(label) + (coloured(line, letter) if in_colour else line))
    print(" " * label + ruler(end_s - start_s, width))
    print(" " * label + "  ".join(f"{c} {kind}" for kind, c in letter.items()) + "  . idle")


def _summary(lane: Lane) -> dict[str, object]:
    return {"rank": lane.rank, "spans": len(lane.spans), "busy_s": lane.busy_s, "by_kind_s": lane.by_kind}
