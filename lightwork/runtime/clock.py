"""The only place that reads a clock."""

from __future__ import annotations

import time
from datetime import datetime


class WallClock:
    """Seconds since it was made, as they pass."""

    virtual = False

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._start


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
