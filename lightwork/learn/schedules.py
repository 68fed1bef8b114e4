"""Values that change over the iterations of a fit: piecewise linear, by fraction of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from lightwork.errors import RangeError

Schedule = float | Sequence[tuple[float, float]]
"""A number, or (where, value) points with where rising from 0 to 1 of all iterations; constant beyond."""


def at(schedule: Schedule, iteration: int, iterations: int) -> float:
    """The value at an iteration, counted from 0. Raises RangeError if points do not rise within 0..1."""
    if isinstance(schedule, int | float):
        return float(schedule)
    points = [(float(where), float(value)) for where, value in schedule]
    wheres = [where for where, _ in points]
    if not points or wheres[0] < 0 or wheres[-1] > 1 or any(a >= b for a, b in pairwise(wheres)):
        raise RangeError(
            f"a schedule with points at {wheres}", expected="rising from 0 to 1", fix="[(0, 5), (0.8, 1)]"
        )
    now = iteration / max(1, iterations - 1)
    if now <= wheres[0]:
        return points[0][1]
    for (begin, first), (end, last) in pairwise(points):
        if now <= end:
            return first + (last - first) * (now - begin) / (end - begin)
    return points[-1][1]
