"""The compiled loops of the probe. Importing this needs numba."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar, cast

import numpy as np

from lightwork.errors import LightworkError

numba: Any = import_module("numba")
F = TypeVar("F", bound=Callable[..., Any])


def _compiled(fn: F) -> F:
    return cast(F, numba.njit(cache=True)(fn))


def _parallel(fn: F) -> F:
    return cast(F, numba.njit(parallel=True, cache=True)(fn))


def require_fast_regions() -> None:
    """Raises LightworkError if parallel loops run on numba's own queue, which costs 75 microseconds each."""
    read(np.zeros(8, np.int64), 1, 1)
    layer = numba.threading_layer()
    if layer == "workqueue":
        raise LightworkError(
            "parallel loops run on numba's workqueue layer",
            expected="omp or tbb",
            fix="install an OpenMP runtime (libgomp1)",
        )


@_compiled
def chase(cycle: Any, at: int, hops: int) -> int:
    """Follow the cycle; each load waits for the one before."""
    for _ in range(hops):
        at = cycle[at]
    return at


@_compiled
def sum_of(part: Any, flip: int) -> int:
    """flip makes the sum depend on the repeat, or the compiler would take it out of the loop."""
    total = 0
    for i in range(part.shape[0]):
        total += part[i] ^ flip
    return total


def _unlocked(fn: F) -> F:
    return cast(F, numba.njit(cache=True, nogil=True)(fn))


@_unlocked
def sum_without_lock(part: Any, flip: int) -> int:
    """As sum_of, for threads of Python."""
    return sum_of(part, flip)


@_compiled
def _fill(part: Any, value: int) -> None:
    for i in range(part.shape[0]):
        part[i] = value + i


@_parallel
def read(data: Any, repeats: int, count: int) -> int:
    """Sum count equal parts side by side, repeats times."""
    size = data.shape[0] // count
    total = 0
    for core in numba.prange(count):
        part = data[core * size : (core + 1) * size]
        for repeat in range(repeats):
            total += sum_of(part, repeat)
    return total


@_parallel
def write(data: Any, repeats: int, count: int) -> None:
    """Fill count equal parts side by side, repeats times."""
    size = data.shape[0] // count
    for core in numba.prange(count):
        part = data[core * size : (core + 1) * size]
        for repeat in range(repeats):
            _fill(part, repeat)


@_parallel
def region(data: Any) -> None:
    """A parallel region with next to nothing in it."""
    for core in numba.prange(data.shape[0]):
        data[core] += 1


@_compiled
def nothing(data: Any) -> int:
    return len(data)
