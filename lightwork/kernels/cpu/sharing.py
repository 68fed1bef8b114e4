"""How the threads of a team share work, wait for each other, and wait for a call.

A call costs one semaphore per helper, a barrier some hundred nanoseconds; a parallel loop of numba costs
microseconds each, and a step has hundreds of them. Helpers wait by spinning for a moment, then asleep.
Work is shared by ranges: each thread takes pieces of its own range, then of the others'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from lightwork.kernels.cpu.compiled import compiled, intrinsic, types
from lightwork.kernels.cpu.primitives import int_at, ints
from lightwork.kernels.cpu.team import ARRIVED, BASE, LINE, SEMAPHORES, STOP
from lightwork.kernels.cpu.vectors import I32, I64, Builder, Value, call

SPINS = 20_000
YIELD_AFTER = 2_000


@intrinsic
def _add(typing: Any, address: Any, amount: Any) -> Any:
    """Atomically add to the int64 at an address; returns what was there."""

    def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
        return b.atomic_rmw("add", b.inttoptr(args[0], I64.as_pointer()), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _read(typing: Any, address: Any) -> Any:
    """The int64 at an address, and whatever its writer wrote before it."""

    def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
        return b.load_atomic(b.inttoptr(args[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), generate


def _c_function(name: str) -> Any:
    """An int function of the C library that takes one pointer, or nothing."""

    @intrinsic
    def function(typing: Any, address: Any) -> Any:
        def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
            given = [] if name == "sched_yield" else [b.inttoptr(args[0], ir.IntType(8).as_pointer())]
            return b.sext(call(b, name, I32, given), I64)

        return types.int64(types.int64), generate

    return function


_sem_wait, _sem_trywait, _sem_post, _yield = map(
    _c_function, ("sem_wait", "sem_trywait", "sem_post", "sched_yield")
)


@compiled
def barrier(t: Any, phase: int) -> int:
    """Return when every thread has reached the end of this phase (0, 1, 2, ... of a call); the next phase."""
    if t.threads > 1:
        # Read before arriving: once all have, the leader may start the next call and move the base.
        all_there = int_at(t.control, BASE) + t.threads * (phase + 1)
        _add(t.control + 8 * ARRIVED, 1)
        spins = 0
        while _read(t.control + 8 * ARRIVED) < all_there:
            spins += 1
            if spins > YIELD_AFTER:
                _yield(0)
    return phase + 1


@compiled
def take(t: Any, phase: int, thread: int, total: int, piece: int) -> tuple[int, int]:
    """The next piece (first, last) of a phase's items for a thread; first == last when none is left."""
    for turn in range(t.threads):
        whose = (thread + turn) % t.threads
        first, last = total * whose // t.threads, total * (whose + 1) // t.threads
        at = first + _add(t.counters + 8 * (whose * t.phases + phase), piece)
        if at < last:
            return at, min(at + piece, last)
    return 0, 0


@compiled
def wait_for_call(t: Any, thread: int) -> bool:
    """Wait until the leader calls; False when the team is dismissed."""
    semaphore = t.control + 8 * (SEMAPHORES + LINE * thread)
    for _ in range(SPINS):
        if _sem_trywait(semaphore) == 0:
            return bool(int_at(t.control, STOP) == 0)
    while _sem_wait(semaphore) != 0:
        pass
    return bool(int_at(t.control, STOP) == 0)


@compiled
def call_helpers(t: Any) -> None:
    """Start a call: reset what is shared, wake everybody."""
    control = ints(t.control, SEMAPHORES)
    control[BASE] = _read(t.control + 8 * ARRIVED)
    ints(t.counters, t.threads * t.phases)[:] = 0
    for thread in range(1, t.threads):
        _sem_post(t.control + 8 * (SEMAPHORES + LINE * thread))
