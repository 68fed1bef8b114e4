"""The only place that reads a clock."""

from __future__ import annotations

import time
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Moment(NamedTuple):
    """What a wall clock shows, to set that of another process by. machine: as it was started, "" if that is
    not known; origin_s: when the clock began, by the machine's own."""

    machine: str
    origin_s: float
    now_s: float


class WallClock:
    """Seconds since it was made, as they pass.

    like: a moment ago of another process's clock, to tell the same time: exactly on the same machine, on
    another one late by as long as the message took.
    """

    virtual = False

    def __init__(self, like: Moment | None = None) -> None:
        self.origin_s = time.perf_counter()
        if like is not None:
            self.origin_s = like.origin_s if like.machine == _machine() else self.origin_s - like.now_s

    def now(self) -> float:
        return time.perf_counter() - self.origin_s

    def wait_until(self, at_s: float) -> None:
        """Block until it shows at_s."""
        time.sleep(max(0.0, at_s - self.now()))

    def moment(self) -> Moment:
        return Moment(_machine(), self.origin_s, self.now())


class VirtualClock:
    """Seconds that pass only when the kernel says so."""

    virtual = True

    def __init__(self) -> None:
        self.time_s = 0.0

    def now(self) -> float:
        return self.time_s


@cache
def _machine() -> str:
    """Differs from that of any machine whose clock began at another time."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text(encoding="ascii") if file.exists() else ""


def cpu_s() -> float:
    """CPU seconds this process has used, all threads, user and system."""
    return time.process_time()


def unix_s() -> int:
    """Seconds since 1970, for records that people read."""
    return int(time.time())


def unix_ns() -> int:
    """Nanoseconds since 1970, for traces of several machines."""
    return time.time_ns()


def local_date() -> datetime:
    """The date and time here, for texts that name today."""
    return datetime.now()
