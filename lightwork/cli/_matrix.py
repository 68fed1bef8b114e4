"""The techniques that serve together, as a matrix; or those of one of them, with why others are refused."""

from __future__ import annotations

import string

from lightwork.cli._output import show_json, show_table
from lightwork.errors import SpecError
from lightwork.serve.pairs import PLACES, Pair, paired, pairs
from lightwork.techniques import Technique

BOTH, REAL, SIMULATED, REFUSED, NEVER = "●◐○×·"
MARKS = {("real", "simulated"): BOTH, ("real",): REAL, ("simulated",): SIMULATED, (): REFUSED}
LEGEND = f"""
{BOTH} tested together, real and simulated    {REAL} real only    {SIMULATED} simulated only
{REFUSED} refused    {NEVER} not combined: a plan has one of a kind
Of one kind, the row's holds the column's, as in Fair(inner=CoServe()).
Why some are refused: lightwork techniques LoraTuning --matrix"""


def show_matrix(technique: Technique | None, as_json: bool) -> None:
    """Raises SpecError for a technique that is none of a plan's, MissingExtraError."""
    found, known = pairs(), paired()
    if technique is not None and technique not in known:
        raise SpecError(
            f"{technique.name} is a {technique.kind}, which is not combined with others in a plan",
            expected=", ".join(one.name for one in known),
            fix="lightwork techniques --matrix",
        )
    if technique is not None:
        found = [pair for pair in found if technique.name in (pair.first, pair.second)]
    if as_json:
        show_json([_plain(pair) for pair in found])
    elif technique is not None:
        columns = ("with", "real", "simulated", "why not")
        show_table(columns, [_row(pair, technique.name) for pair in found])
    else:
        _draw(found, known)


def _plain(pair: Pair) -> dict[str, object]:
    names = {"first": pair.first, "second": pair.second, "field": pair.field}
    return {**names, "tested": _worlds(pair), "refused": pair.refused}


def _worlds(pair: Pair) -> list[str]:
    return [world for world in PLACES if world not in pair.refused]


def _row(pair: Pair, name: str) -> tuple[str, ...]:
    other = pair.second if pair.first == name else pair.first
    if pair.field:
        other = f"{pair.first}({pair.field}={pair.second}())"
    worlds = ["refused" if world in pair.refused else "tested" for world in PLACES]
    return (other, *worlds, " and ".join(dict.fromkeys(pair.refused.values())))


def _draw(found: list[Pair], known: list[Technique]) -> None:
    letters = dict(zip((one.name for one in known), string.ascii_letters, strict=False))
    kinds = {one.name: one.kind for one in known}
    marks = {}
    for pair in found:
        mark = marks[pair.first, pair.second] = MARKS[tuple(_worlds(pair))]
        if kinds[pair.first] != kinds[pair.second]:
            marks[pair.second, pair.first] = mark
    width = max(len(one.name) for one in known)
    print(" " * (width + 6) + "".join(letters.values()))
    kind = ""
    for row in known:
        if row.kind != kind:
            kind = row.kind
            print(kind)
        cells = "".join(marks.get((row.name, column.name), NEVER) for column in known)
        print(f"  {letters[row.name]} {row.name:<{width}}  {cells}")
    print(LEGEND)
