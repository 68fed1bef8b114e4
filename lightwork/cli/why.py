"""Why a request took as long as it did, or what would make a recorded run faster.

RUN is what `--trace` of serve or sim wrote, a file or a folder. ID is the number of a sequence: its life in
parts that sum to it, and whom it waited for. With --best the recorded load is run again in simulation, one
thing changed at a time; for a run on this machine step times are fitted to the record. --measure serves the
load once more for real, as recorded and with the best change.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lightwork.cli import _options
from lightwork.cli._verbs import verb
from lightwork.errors import UsageError

if TYPE_CHECKING:
    from lightwork.plan.why import Change, Record
    from lightwork.runtime.trace import Trace


@verb("lightwork why out.json 7", "lightwork why recorded --best")
@click.argument("file", metavar="RUN", type=click.Path(exists=True, path_type=Path))
@click.argument("id", type=int, required=False)
@click.option("--best", is_flag=True, help="What would make the whole run faster, predicted.")
@click.option("--measure", is_flag=True, help="With --best: also for real, on this machine.")
@_options.as_json
def command(file: Path, id: int | None, best: bool, measure: bool, as_json: bool) -> None:
    from lightwork.serve.run_folder import read_traces

    if (id is None) is not best or (measure and not best):
        raise UsageError(
            "why asks for one thing", expected="an ID, or --best", fix=f"lightwork why {file} --best"
        )
    trace = read_traces(file)[0]
    if id is not None:
        _one(trace, id, as_json)
        return
    from lightwork.plan.why import Record

    record = Record.of(trace)
    if measure and record.calibration is None:
        raise UsageError(
            "a simulated run cannot be measured", expected="a trace of serve", fix="leave --measure out"
        )
    changes = sorted(record.changes(), key=lambda change: -change.gain)
    _whole(trace, record, changes, measure, as_json)


def _one(trace: Trace, seq_id: int, as_json: bool) -> None:
    from lightwork.cli._output import show_json, show_table
    from lightwork.plan.why import explain
    from lightwork.runtime.timeline import in_units

    parts = explain(trace.spans, seq_id)
    total_s = sum(part.seconds for part in parts)
    if as_json:
        show_json(
            {"label": trace.label, "id": seq_id, "seconds": total_s, "parts": [p._asdict() for p in parts]}
        )
        return
    print(f"{trace.label}: sequence {seq_id}, {in_units(total_s)} from its arrival to its last token")
    rows = [(p.name, in_units(p.seconds), f"{p.seconds / max(total_s, 1e-12):.0%}", p.note) for p in parts]
    show_table(("part", "time", "share", ""), rows)


def _whole(trace: Trace, record: Record, changes: list[Change], measure: bool, as_json: bool) -> None:
    from lightwork.cli._output import show_json, show_table
    from lightwork.runtime.timeline import in_units

    better = measure and changes[0].plan is not record.plan
    measured = [record.measure(plan) for plan in (record.plan, changes[0].plan)] if better else []
    if as_json:
        rows = [{"change": c.name, "gain": c.gain, **c.figures._asdict()} for c in changes]
        told = {
            "label": trace.label,
            "recorded": record.figures._asdict(),
            "simulated": True,
            "changes": rows,
        }
        show_json(told | ({"measured": [f._asdict() for f in measured]} if measured else {}))
        return
    print(f"{trace.label}: {len(record.arrivals)} requests; predicted, one thing changed at a time")
    if record.calibration is not None:
        print(f"step times fitted to the record, median error {record.calibration.error:.0%}")
    columns = ("change", "gain", "mean life", "p99", "ttft p99", "tbt p99")
    recorded = ("recorded", "", *map(in_units, record.figures))
    show_table(columns, [recorded, *((c.name, f"{c.gain:.2f}x", *map(in_units, c.figures)) for c in changes)])
    if measure and not better:
        print("\nnothing is better than what was recorded: nothing is measured")
    if measured:
        now, then = measured
        gain = now.latency_mean_s / then.latency_mean_s
        print(f"\nmeasured {changes[0].name}: {gain:.2f}x, predicted {changes[0].gain:.2f}x")
