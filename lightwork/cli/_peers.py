"""The table of lightwork against its peers, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from lightwork.claims.peers import AGAIN, EVERY_CELL, Processor, Row, best_peers
from lightwork.cli._output import show_json, show_table

COLUMNS = ("cell", "unit", "lightwork", "theirs", "best peer", "ratio", "range", "n", "bar")


def show_peers(rows: Sequence[Row], as_json: bool, again: str = AGAIN) -> None:
    """Print one row per cell, against the peer with the lowest ratio; as JSON, every row on record.

    again: the command that measures them.
    """
    if as_json:
        show_json([row.record() for row in rows])
        return
    if not rows:
        print(f"no peer was measured yet\n  measure: {again}")
        return
    for processor, own in groupby(sorted(rows, key=lambda r: r.key), key=lambda r: r.processor):
        _show_processor(processor, list(own))
    print(f"ratios above 1 say that lightwork is better\nmeasure again: {again}")


def _show_processor(processor: Processor, rows: list[Row]) -> None:
    name, instructions, threads = processor
    print(f"{name}, {threads} thread{'s' * (threads > 1)} ({instructions or 'instructions unknown'})\n")
    best = best_peers(rows)
    for (shape, weights), group in groupby(best, key=lambda r: (r.shape, r.weights)):
        cells = list(group)
        print(f"{shape} {weights}, lightwork with {' or '.join(_distinct(_use(row) for row in cells))}")
        show_table(COLUMNS, [_cells(row) for row in cells])
        print()
    if best:
        judged = [row for row in best if row.bar is not None]
        print(f"missed    {sum(row.missed for row in judged)} of {len(judged)} cells are below their bar")
        measured = [row for row in rows if row.absent is None]
        _show("measured", (f"{row.date} at {row.commit}" for row in measured))
        _show("versions", (version for row in measured for version in _versions(row)))
    for reason in _distinct(_absence(row) for row in rows if row.absent is not None):
        print(f"absent    {reason}")
    print()


def _cells(row: Row) -> tuple[object, ...]:
    bar = None if row.bar is None else f"{row.bar} MISSED" if row.missed else str(row.bar)
    spread = f"[{row.ratio_min:.2f}, {row.ratio_max:.2f}]"
    figures = (_figure(row.lightwork), _figure(row.peer_figure))
    return (row.cell, row.unit, *figures, row.peer, f"{row.ratio:.2f}x", spread, row.pairs, bar)


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def _use(row: Row) -> str:
    return "+".join(row.use) or "no technique"


def _versions(row: Row) -> list[str]:
    engines = (row.versions or {}).values()
    return [f"{name} {version}" for libraries in engines for name, version in libraries.items()]


def _absence(row: Row) -> str:
    cell = "" if row.cell == EVERY_CELL else f" {row.cell}"
    return f"{row.shape} {row.weights}{cell} {row.peer}: {row.absent}"


def _show(name: str, texts: Iterable[str]) -> None:
    print(f"{name}  {', '.join(_distinct(texts))}")


def _distinct(texts: Iterable[str]) -> list[str]:
    return sorted(set(texts))
