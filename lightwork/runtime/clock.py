"""The only place that reads a clock."""

from __future__ import annotations

import time
from datetime import datetime


class WallClock:
    """Seconds since it was made, as they pass.

    origin_s: that of another process's clock on this machine, to tell the same time.
    """

    virtual = False

    def __init__(self, origin_s: float | None = None) -> None:
        self.origin_s = time.perf_counter() if origin_s is None else origin_s

    def now(self) -> float:
        return time.perf_counter() - self.origin_s


class VirtualClock:
    """Seconds that pass only when the kernel says so."""

    virtual = True

    def __init__(self) -> None:
        self.time_s = 0.0

    def now(self) -> float:
        return self.time_s


def cpu_s() -> float:
    """CPU seconds this process has used, all threads, user and system."""
    return time.process_time()


def unix_s() -> int:
    """Seconds since 1970, for records that people read."""
    return int(time.time())


def local_date() -> datetime:
    """The date and time here, for texts that name today."""
    return datetime.now()
