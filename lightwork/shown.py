"""How values draw themselves: a table and a picture, in a terminal by rich, in a notebook as HTML with SVG.

A class that is worth a look has a method `table()`, and both hooks that terminals and notebooks call hand on
to it. Nothing needs a library but rich, which is imported when something is drawn in a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group

FILLS = ("#4878d0", "#ee854a", "#6acc64", "#d65f5f", "#956cb4", "#8c613c", "#dc7ec0", "#797979")
WIDTH_PX, LANE_PX, LABEL_PX = 720, 16, 90
_SCALES = (
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
    (1.0, ""),
    (1e-3, "m"),
    (1e-6, "µ"),
    (1e-9, "n"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows below a title, and maybe a picture. text, svg: the picture, in characters and as inline SVG."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    text: str = ""
    svg: str = ""

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.table import Table as Drawn
        from rich.text import Text

        drawn = Drawn(box=None, pad_edge=False, header_style="bold")
        for name in self.columns:
            drawn.add_column(name, overflow="fold")
        for row in self.rows:
            drawn.add_row(*(Text(cell(value)) for value in row))
        title = [Text(self.title, style="bold")] if self.title else []
        picture = [Text(self.text, no_wrap=True)] if self.text else []
        return Group(*title, drawn, *picture)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        rows = ("".join(f"<td>{escape(cell(value))}</td>" for value in row) for row in self.rows)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        title = f"<b>{escape(self.title)}</b>" if self.title else ""
        return f"<div>{title}<table><tr>{head}</tr>{body}</table>{self.svg}</div>"


def cell(value: object) -> str:
    """A value as tables show it."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def readable(value: float, unit: str) -> str:
    """A number with its unit and an SI prefix."""
    if not unit:
        return f"{value:g}"
    for scale, prefix in _SCALES:
        if abs(value) >= scale * 0.9995:
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def unit_of(field: str) -> str:
    """The unit that a field's name ends with."""
    for ending, unit in (("bytes_per_s", "B/s"), ("bytes", "B"), ("_s", "s")):
        if field.endswith(ending) and not field.endswith("tokens_per_s"):
            return unit
    return ""


def bars_svg(bars: Iterable[tuple[str, float, str]]) -> str:
    """Bars below each other: (name, length from 0 to 1, what stands behind it)."""
    parts, row = [], 0
    for row, (name, length, words) in enumerate(bars, 1):
        top, long_px = (row - 1) * LANE_PX, length * (WIDTH_PX - 200)
        parts += [label(0, top, name), box(LABEL_PX, top, long_px, FILLS[0])]
        parts.append(label(LABEL_PX + long_px + 6, top, words))
    return svg(parts, row * LANE_PX)


def box(x: float, top: float, wide_px: float, fill: str, inside: str = "") -> str:
    """A rectangle in the row that begins at top. inside: what it contains."""
    at = f'x="{x:.1f}" y="{top + 2}" width="{wide_px:.1f}" height="{LANE_PX - 4}"'
    return f'<rect {at} fill="{fill}">{inside}</rect>'


def label(x: float, top: float, text: str, anchor: str = "start") -> str:
    """Text in the row that begins at top."""
    return f'<text x="{x:.1f}" y="{top + LANE_PX - 4}" text-anchor="{anchor}">{escape(text)}</text>'


def svg(parts: Sequence[str], high_px: float) -> str:
    """The picture that parts make. Text takes the colour of the page, so that it is readable on dark ones."""
    size = f'width="{LABEL_PX + WIDTH_PX}" height="{high_px}"'
    style = 'font-family="sans-serif" font-size="11" fill="currentColor"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(parts)}</svg>'
