"""A model of 184 million parameters whose weights come from this machine's disk, measured.

Reads go past the system's cache, so each of them is one of the disk.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightwork import models
from lightwork.claims._random_llama import random_llama
from lightwork.errors import InvariantError
from lightwork.kernels.cpu.formats import PAGE
from lightwork.kernels.rows import Rows
from lightwork.memory.residencies import Residency
from lightwork.memory.residencies.window import Window
from lightwork.memory.streamed_weights import StreamedWeights, streamed
from lightwork.models.compiled import CompiledModel
from lightwork.models.precisions.stored import Stored
from lightwork.plan.streaming import UnitTimes
from lightwork.runtime.clock import WallClock

TIMES = 7


def opened(policy: Residency[Any] | None, *, seed: int = 0) -> CompiledModel:
    """The model, resident without a policy. seed: 0 is the model that is also mapped whole here."""
    arrive = partial(streamed, policy) if policy is not None else None
    model = models.load_compiled(random_llama(seed), precision=Stored(), arrive=arrive)
    model.set_threads(1)
    model.warm_up()
    return model


def streaming(model: CompiledModel) -> StreamedWeights:
    assert isinstance(model.arriving, StreamedWeights)
    return model.arriving


def timed_s(work: Callable[[], object]) -> float:
    clock = WallClock()
    work()
    return clock.now()


def pass_of(model: CompiledModel, num_rows: int) -> Callable[[], NDArray[np.float32]]:
    """A pass over so many rows of one text."""
    rows = Rows.of_text(np.arange(num_rows, dtype=np.int64) % model.spec.vocab_size, PAGE)
    return partial(model.logits, rows, model.new_kv(-(-num_rows // PAGE), PAGE))


@contextmanager
def both(policy: Residency[Any], num_rows: int) -> Iterator[tuple[CompiledModel, CompiledModel]]:
    """The streamed model and the resident one, of which the same logits are asserted."""
    there, apart = opened(None), opened(policy)
    try:
        if not np.array_equal(pass_of(there, num_rows)(), pass_of(apart, num_rows)()):
            raise InvariantError("streamed weights gave other logits", expected="the same bits")
        yield apart, there
    finally:
        there.close()
        apart.close()


def read_all(weights: StreamedWeights) -> None:
    """What a pass copies, and nothing else. The model must not be used afterwards."""
    for unit in weights.units.values():
        weights.file.read(unit.begin, unit.end, weights.arena[0])


@cache
def over_the_longer(policy: Residency[Any], num_rows: int) -> tuple[float, str]:
    """Time of a pass over that of its copies or its computing, whichever is longer: the median of several,
    each measured side by side; and how long these were."""
    ratios, copying, computing = [], [], []
    with both(policy, num_rows) as (apart, there):
        reader = opened(policy)
        passing, alone = pass_of(apart, num_rows), pass_of(there, num_rows)
        for _ in range(TIMES):
            passing()  # the first of those that follow one another
            took_s = timed_s(passing)
            copying.append(timed_s(partial(read_all, streaming(reader))))
            computing.append(timed_s(alone))
            ratios.append(took_s / max(copying[-1], computing[-1]))
        reader.close()
        here = streaming(apart).arena.nbytes / apart.nbytes
    note = f"{min(ratios):.2f} to {max(ratios):.2f}; disk {median(copying):.2f} s, "
    note += f"computing {median(computing):.2f} s, {here:.0%} of the weights in memory"
    return median(ratios), note


def rows_that_balance() -> int:
    """Rows whose computing takes about as long as reading the weights."""
    there, reader = opened(None), opened(Window(k=2))
    disk_s = median(timed_s(partial(read_all, streaming(reader))) for _ in range(3))
    times = {num: median(timed_s(pass_of(there, num)) for _ in range(3)) for num in (64, 128, 192, 256, 384)}
    there.close()
    reader.close()
    return min(times, key=lambda num: abs(times[num] - disk_s))


def unit_times(num_rows: int) -> dict[str, UnitTimes]:
    """Of the layers and the head: computing by their bytes, copies each by itself."""
    there, reader = opened(None), opened(Window(k=1))
    weights = streaming(reader)
    compute_s = median(timed_s(pass_of(there, num_rows)) for _ in range(3))
    whole = sum(unit.nbytes for unit in weights.units.values())
    found = {}
    for name, unit in weights.units.items():
        read = partial(weights.file.read, unit.begin, unit.end, weights.arena[0])
        copy_s = median(timed_s(read) for _ in range(3))
        found[name] = UnitTimes(unit.nbytes, compute_s * unit.nbytes / whole, copy_s)
    there.close()
    reader.close()
    return found


def share_in_cache(file: Path) -> float:
    """Of a file's pages, those that the system's cache holds."""
    size = file.stat().st_size
    with file.open("rb") as opened_file, mmap.mmap(opened_file.fileno(), size, prot=mmap.PROT_READ) as mapped:
        num_pages = -(-size // mmap.PAGESIZE)
        there = (ctypes.c_ubyte * num_pages)()
        view = np.frombuffer(mapped, np.uint8)
        failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size), there)
        del view
    if failed:
        raise InvariantError("the system does not say which pages it holds", expected="mincore")
    return sum(page & 1 for page in there) / num_pages


def forget(files: Iterable[Path]) -> None:
    """Let the system drop what its cache holds of files."""
    for file in files:
        with file.open("rb") as opened_file:
            os.posix_fadvise(opened_file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
