"""Levels of memory from a latency curve: plateaus are levels, climbs between them are capacities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from statistics import median

STEP = 1.12
"""Latency that grows by more than this from one footprint to the next is climbing."""
CLIMB = 1.5
"""A climb by less than this in all is drift (page tables, noise), not a level."""
BEND = 0.6
"""A capacity is where a climb first is this share as steep as it gets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """bytes: the largest footprint that still fits; None for the outermost, which nothing exceeded.

    plateau: the footprints whose median latency_s is. Those on a climb belong to no level: part of their
    accesses hit one and part the next, in shares that change from run to run.
    """

    bytes: int | None
    latency_s: float
    plateau: tuple[int, ...] = ()


def detect_levels(curve: Sequence[tuple[int, float]]) -> tuple[Level, ...]:
    """Levels, inner to outer, of (footprint in bytes, seconds per access), footprints ascending.

    Other work only ever adds latency, so the curve is first lowered to the least of what follows.
    """
    sizes = [size for size, _ in curve]
    latency: list[float] = []
    for _, seconds in reversed(curve):
        latency.append(min(seconds, latency[-1]) if latency else seconds)
    latency.reverse()
    levels: list[Level] = []
    start = 0
    for first, last in _climbs(latency):
        steepness = [log(latency[i + 1] / latency[i]) for i in range(first, last)]
        edge = first + next(i for i, s in enumerate(steepness) if s >= BEND * max(steepness))
        flat = slice(min(start, first), first + 1)
        levels.append(_level(sizes[edge], sizes[flat], latency[flat]))
        start = last
    if latency:
        levels.append(_level(None, sizes[start:], latency[start:]))
    return tuple(levels)


def _level(capacity: int | None, plateau: Sequence[int], latency: Sequence[float]) -> Level:
    return Level(bytes=capacity, latency_s=median(latency), plateau=tuple(plateau))


def _climbs(latency: Sequence[float]) -> list[tuple[int, int]]:
    """Runs of climbing steps, as (first, last) points, that amount to a level; one flat step ends none."""
    runs: list[tuple[int, int]] = []
    for i in range(len(latency) - 1):
        if latency[i + 1] > STEP * latency[i]:
            joined = bool(runs) and i - runs[-1][1] <= 1
            runs[-1:] = [(runs[-1][0], i + 1)] if joined else [*runs[-1:], (i, i + 1)]
    return [(first, last) for first, last in runs if latency[last] > CLIMB * latency[first]]
