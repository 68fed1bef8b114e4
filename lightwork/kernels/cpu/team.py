"""Threads that run one compiled function together, and the memory by which they do (sharing.py)."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightwork.kernels.cpu.state import State

LINE = 8
"""int64s in a cache line: what different threads write lies in different lines."""

ARRIVED, BASE, STOP, SEMAPHORES = 0, LINE, LINE + 1, 2 * LINE


class Team:
    """num_threads - 1 helper threads for a compiled function of at most num_phases phases.

    The function is called with (thread, address of the record); the record of `state` leads to the memory
    they share. It must end with a barrier.
    """

    def __init__(self, num_threads: int, num_phases: int) -> None:
        self.num_threads = num_threads
        self.num_phases = num_phases
        self.control: NDArray[np.int64] = np.zeros(SEMAPHORES + LINE * num_threads, np.int64)
        self.counters: NDArray[np.int64] = np.zeros((num_threads, num_phases), np.int64)
        self._helpers: list[threading.Thread] = []
        libc = ctypes.CDLL(None, use_errno=True)
        for thread in range(num_threads):
            libc.sem_init(ctypes.c_void_p(self._semaphore(thread)), 0, 0)
        self._post = libc.sem_post
        # A helper must not outlive the memory it sleeps in: whoever gets that next would share its semaphore.
        weakref.finalize(self, _dismiss, self.control, self._helpers, self._post)

    def employ(self, work: Callable[[int, int], object], state: State) -> None:
        """Let the helpers run work(thread, record), which returns when they are dismissed."""
        self.dismiss()
        self.control[STOP] = 0
        state.set(
            threads=self.num_threads,
            control=self.control,
            counters=self.counters,
            phases=self.counters.shape[1],
        )
        for thread in range(1, self.num_threads):
            helper = threading.Thread(
                target=work, args=(thread, state.address), name=f"compute {thread}", daemon=True
            )
            helper.start()
            self._helpers.append(helper)

    def dismiss(self) -> None:
        """End what the helpers do."""
        _dismiss(self.control, self._helpers, self._post)

    def _semaphore(self, thread: int) -> int:
        return _semaphore(self.control, thread)


def _semaphore(control: NDArray[np.int64], thread: int) -> int:
    """The address of a thread's semaphore."""
    return int(control.ctypes.data) + 8 * (SEMAPHORES + LINE * thread)


def _dismiss(control: NDArray[np.int64], helpers: list[threading.Thread], post: Any) -> None:
    control[STOP] = 1
    for thread in range(1, len(helpers) + 1):
        post(ctypes.c_void_p(_semaphore(control, thread)))
    for helper in helpers:
        if helper is not threading.current_thread():
            helper.join()
    helpers.clear()
