"""Spans as a picture of characters, one lane per rank, and what each lane did."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightwork.runtime.trace import Span

IDLE = "."
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
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


def _union_s(spans: Sequence[Span]) -> float:
    busy_s, reached_s = 0.0, float("-inf")
    for span in spans:
        if span.end_s > reached_s:
            busy_s += span.end_s - max(span.start_s, reached_s)
            reached_s = span.end_s
    return busy_s
