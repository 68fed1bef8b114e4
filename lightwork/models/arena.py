"""Memory for keys and values: a process's own, or one that several processes map."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNED = 4096


def arrays(shapes: Sequence[tuple[tuple[int, ...], Any]], shared: int | None = None) -> list[NDArray[Any]]:
    """Zeros of (shape, dtype), in small pages: clearing a huge one, when first touched, stops a step for 2
    ms.

    shared: the descriptor of a file in memory, which becomes as large as the arrays are together. Whoever
    maps it with the same shapes sees the same numbers, also after the process that made it has died.
    """
    sizes = [-(-prod(shape) * np.dtype(kind).itemsize // ALIGNED) * ALIGNED for shape, kind in shapes]
    if shared is None:
        memory = mmap.mmap(-1, sum(sizes), flags=mmap.MAP_PRIVATE)
    else:
        os.ftruncate(shared, sum(sizes))
        memory = mmap.mmap(shared, sum(sizes), flags=mmap.MAP_SHARED)
    made, at = [], 0
    for (shape, kind), size in zip(shapes, sizes, strict=True):
        made.append(np.frombuffer(memory, kind, prod(shape), at).reshape(shape))
        at += size
    return made


def discard(part: NDArray[Any]) -> None:
    """Give the memory of a contiguous part of one of `arrays` back to the system, whole pages of it. It reads
    as zeros, and is taken again when it is written."""
    base: Any = part.base
    while isinstance(base, np.ndarray):
        base = base.base
    memory: mmap.mmap = base.obj
    start = part.ctypes.data - np.frombuffer(memory, np.uint8).ctypes.data
    first, end = -(-start // mmap.PAGESIZE), (start + part.nbytes) // mmap.PAGESIZE
    if first >= end:
        return
    for advice in ("MADV_REMOVE", "MADV_DONTNEED"):  # of memory that others map, of a process's own
        with suppress(AttributeError, OSError):
            where = first * mmap.PAGESIZE, (end - first) * mmap.PAGESIZE
            memory.madvise(getattr(mmap, advice), *where)
            return
