"""Timing: benches run in rounds, so that a burst of other work hits one repeat of each, not all of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from lightwork.runtime import WallClock

BATCH_S = 1e-3
"""A repeat lasts about this long: reading the clock costs nothing, and it fits in a time slice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One quantity. fn does `amount` of it; per_s: report amount per second, else seconds per amount."""

    name: str
    method: str
    fn: Callable[[], Any]
    amount: float = 1.0
    per_s: bool = True
    once: bool = False
    """A repeat is one call, however short: what is measured must not be warm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A measured quantity. values: one per repeat, in amount per second or seconds per amount."""

    name: str
    method: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        if len(self.values) < 2:
            return 0.0
        low, _, high = quantiles(self.values, n=4, method="inclusive")
        return (high - low) / self.median

    @property
    def source(self) -> str:
        """Provenance, as descriptions carry it."""
        return f"measured: {self.method}; median of {len(self.values)}, spread {self.spread:.0%}"


def measure(benches: Sequence[Bench], rounds: int) -> tuple[Sample, ...]:
    """Time every bench once a round."""
    clock = WallClock()
    calls = [_calls(bench, clock) for bench in benches]
    values: list[list[float]] = [[] for _ in benches]
    for _ in range(rounds):
        for bench, count, seen in zip(benches, calls, values, strict=True):
            seconds = _time(bench.fn, count, clock) / count / bench.amount
            seen.append(1.0 / seconds if bench.per_s else seconds)
    return tuple(
        Sample(name=bench.name, method=bench.method, values=tuple(seen))
        for bench, seen in zip(benches, values, strict=True)
    )


def _calls(bench: Bench, clock: WallClock) -> int:
    """How many calls fill a repeat. Two calls warm up first: compilation, caches, pages."""
    if bench.once:
        bench.fn()
        return 1
    bench.fn()
    bench.fn()
    return max(1, round(BATCH_S / max(_time(bench.fn, 1, clock), 1e-9)))


def _time(fn: Callable[[], Any], count: int, clock: WallClock) -> float:
    """Seconds of count calls, never zero."""
    start_s = clock.now()
    for _ in range(count):
        fn()
    return max(clock.now() - start_s, 1e-9)
