"""Spans as a picture, of characters or as SVG, one lane per rank, and what each lane did."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from lightwork.shown import FILLS, LABEL_PX, LANE_PX, WIDTH_PX, Table, box, label, svg

if TYPE_CHECKING:
    from lightwork.runtime.trace import Span

IDLE = "."
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CELLS = 240
"""Of a picture in a notebook: it stays small, however many spans there are."""
MOST_LANES = 32
COLOURS = ("44", "42", "43", "45", "46", "41", "100")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One rank's spans.

    busy_s: time in which at least one of them ran. by_kind: seconds per kind, overlaps counted twice.
    """

    rank: str
    spans: tuple[Span, ...]
    busy_s: float
    by_kind: dict[str, float]

    @property
    def mostly(self) -> str:
        """The kinds that took most of the time, in order."""
        return ", ".join(sorted(self.by_kind, key=lambda k: (-self.by_kind[k], k))[:3])


def lanes(spans: Iterable[Span]) -> list[Lane]:
    """Group spans by rank, in the ranks' natural order."""
    by_rank: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        by_rank[str(span.rank)].append(span)
    made = []
    for rank in sorted(by_rank, key=lambda r: (not r.isdecimal(), int(r) if r.isdecimal() else 0, r)):
        own = sorted(by_rank[rank], key=lambda s: (s.start_s, s.end_s))
        kinds: dict[str, float] = defaultdict(float)
        for span in own:
            kinds[span.kind] += span.end_s - span.start_s
        made.append(Lane(rank=rank, spans=tuple(own), busy_s=_union_s(own), by_kind=dict(kinds)))
    return made


def phases(spans: Iterable[Span]) -> list[Span]:
    """What takes time, an engine's steps named by what they mostly did."""
    shown = []
    for span in spans:
        if span.kind == "step" and span.args is not None:
            rows = [chunk[2] for chunk in span.args["chunks"]]
            shown.append(span._replace(kind="prefill" if sum(rows) > 2 * len(rows) else "decode"))
        elif span.end_s > span.start_s:
            shown.append(span)
    return shown


def letters(shown: Sequence[Lane]) -> dict[str, str]:
    """A letter for each kind: its first if that is free, else the first that is."""
    total: dict[str, float] = defaultdict(float)
    for lane in shown:
        for kind, seconds in lane.by_kind.items():
            total[kind] += seconds
    chosen: dict[str, str] = {}
    for kind in sorted(total, key=lambda k: (-total[k], k)):
        free = [c for c in kind.upper() + LETTERS if c in LETTERS and c not in chosen.values()]
        chosen[kind] = free[0] if free else "?"
    return chosen


def draw(lane: Lane, letter: dict[str, str], start_s: float, end_s: float, width: int) -> str:
    """One lane as `width` characters: the innermost span that fills a cell, `.` where there is none."""
    cells = [IDLE] * width
    per_cell_s = (end_s - start_s) / width
    if per_cell_s <= 0:
        return "".join(cells)
    for span in sorted(lane.spans, key=lambda s: s.start_s - s.end_s):
        first = (span.start_s - start_s) / per_cell_s
        last = (span.end_s - start_s) / per_cell_s
        for i in range(max(0, int(first)), min(width, int(last) + 1)):
            covered = min(last, i + 1) - max(first, i)
            if covered >= 0.5 or (covered > 0 and cells[i] == IDLE):
                cells[i] = letter[span.kind]
    return "".join(cells)


def ruler(seconds: float, width: int) -> str:
    """An axis below the lanes: zero at the left, the whole time at the right."""
    right = in_units(seconds)
    return "0" + right.rjust(width - 1)


def in_units(seconds: float) -> str:
    """A time in the unit that keeps it readable."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1 or unit == "µs":
            return f"{seconds * scale:.3g} {unit}"
    raise AssertionError("unreachable: the last unit takes every time")


def coloured(line: str, letter: dict[str, str]) -> str:
    """The same line with each kind on a background of its own."""
    colour = {c: COLOURS[i % len(COLOURS)] for i, c in enumerate(letter.values())}
    return "".join(f"\x1b[{colour[c]}m{c}\x1b[0m" if c in colour else c for c in line)


def lanes_table(title: str, lanes: Sequence[Lane], width: int = 72) -> Table:
    """What each rank of a run did, and a picture of when."""
    if not any(lane.spans for lane in lanes):
        return Table(title=title, columns=("rank", "spans"), rows=())
    shown = lanes[:MOST_LANES]
    start_s = min(span.start_s for lane in lanes for span in lane.spans)
    end_s = max(span.end_s for lane in lanes for span in lane.spans)
    rows = tuple(
        (lane.rank, len(lane.spans), in_units(lane.busy_s), _share(lane.busy_s, end_s - start_s), lane.mostly)
        for lane in shown
    )
    more = f"; {len(lanes) - len(shown)} more ranks" if len(lanes) > len(shown) else ""
    return Table(
        title=title + more,
        columns=("rank", "spans", "busy", "share", "mostly"),
        rows=rows,
        text=_in_characters(shown, start_s, end_s, width),
        svg=_in_svg(shown, start_s, end_s),
    )


def _share(part_s: float, whole_s: float) -> str:
    return f"{part_s / whole_s:.0%}" if whole_s > 0 else "-"


def _lasting(shown: Sequence[Lane]) -> dict[str, str]:
    """Letters of the kinds that take time; moments are in the table, and not to be seen in a picture."""
    return {kind: c for kind, c in letters(shown).items() if any(lane.by_kind.get(kind) for lane in shown)}


def _in_characters(shown: Sequence[Lane], start_s: float, end_s: float, width: int) -> str:
    letter = _lasting(shown)
    indent = max(len(lane.rank) for lane in shown) + 2
    lines = [lane.rank.ljust(indent) + draw(lane, letter, start_s, end_s, width) for lane in shown]
    lines.append(" " * indent + ruler(end_s - start_s, width))
    lines.append(" " * indent + "  ".join(f"{c} {kind}" for kind, c in letter.items()) + f"  {IDLE} idle")
    return "\n".join(lines)


def _in_svg(shown: Sequence[Lane], start_s: float, end_s: float) -> str:
    """The same lanes as rectangles: a run of cells that are of one kind is one."""
    letter = _lasting(shown)
    kinds = {c: kind for kind, c in letter.items()}
    fill = {c: FILLS[i % len(FILLS)] for i, c in enumerate(letter.values())}
    cell_px = WIDTH_PX / CELLS
    parts = []
    for row, lane in enumerate(shown):
        top = row * LANE_PX
        parts.append(label(0, top, lane.rank))
        at = 0
        for char, run in groupby(draw(lane, letter, start_s, end_s, CELLS)):
            num = len([*run])
            if char != IDLE:
                x, told = LABEL_PX + at * cell_px, f"<title>{escape(kinds[char])}</title>"
                parts.append(box(x, top, num * cell_px, fill[char], told))
            at += num
    below = len(shown) * LANE_PX
    parts.append(label(LABEL_PX, below, "0"))
    parts.append(label(LABEL_PX + WIDTH_PX, below, in_units(end_s - start_s), anchor="end"))
    for i, (char, kind) in enumerate(kinds.items()):
        parts.append(box(LABEL_PX + i * 110, below + LANE_PX, 10, fill[char]))
        parts.append(label(LABEL_PX + i * 110 + 14, below + LANE_PX, kind))
    return svg(parts, below + 2 * LANE_PX)


def _union_s(spans: Sequence[Span]) -> float:
    busy_s, reached_s = 0.0, float("-inf")
    for span in spans:
        if span.end_s > reached_s:
            busy_s += span.end_s - max(span.start_s, reached_s)
            reached_s = span.end_s
    return busy_s
