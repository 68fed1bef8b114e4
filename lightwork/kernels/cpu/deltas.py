"""What adapters add to the products of a layer, to their own rows only: B (A x), in float32.

A row's inputs are reduced to the ranks of its adapter in a phase of its own; whoever computes a block of
outputs then adds its part, before anything that follows the product. Both are products by the micro-kernel,
whose bits for a row depend neither on who shares the step nor on threads.
"""

from __future__ import annotations

from typing import Any

from lightwork.kernels.cpu.compiled import compiled
from lightwork.kernels.cpu.formats import BLOCK
from lightwork.kernels.cpu.primitives import int_at, ints, multiply
from lightwork.kernels.cpu.sharing import barrier, take
from lightwork.kernels.cpu.state import (
    DELTA_A,
    DELTA_B,
    DELTA_BLOCKS,
    DELTA_COLUMNS,
    DELTA_FIRST_BLOCK,
    DELTA_RANK,
    DELTA_REDUCED,
    DELTAS_PER_PRODUCT,
    RANK_BLOCK,
    RUN_ADAPTER,
    RUN_COLUMNS,
    RUN_FIRST,
    RUN_ROWS,
)


@compiled
def _delta(adapter: int, product: int, number: int) -> Any:
    """A line of an adapter's table. product: its own number, over all layers."""
    line = DELTAS_PER_PRODUCT * product + number
    return ints(adapter + 8 * DELTA_COLUMNS * line, DELTA_COLUMNS)


@compiled
def reduce_phase(t: Any, thread: int, phase: int, product: int, buffer: int, size: int) -> int:
    """A x of every row that has an adapter, if there are any; the next phase. x: rows of a buffer."""
    if t.runs == 0:
        return phase
    blocks = t.reduced_width // RANK_BLOCK
    while True:
        item, last = take(t, phase, thread, t.runs * blocks, 1)
        if item == last:
            return barrier(t, phase)
        run = ints(t.run_table + 8 * RUN_COLUMNS * (item // blocks), RUN_COLUMNS)
        first, rows, at = run[RUN_FIRST], run[RUN_ROWS], item % blocks * RANK_BLOCK
        for number in range(DELTAS_PER_PRODUCT):
            delta = _delta(run[RUN_ADAPTER], product, number)
            inside = at - delta[DELTA_REDUCED]
            if 0 <= inside < delta[DELTA_RANK]:
                a = delta[DELTA_A] + 4 * inside * size
                out, width = t.reduced + 4 * (first * t.reduced_width + at), 4 * t.reduced_width
                x = buffer + 4 * first * t.width
                multiply(
                    t.reduce_kernel, a, t.table, x, 4 * t.width, 0, 0, 0, out, width, rows, size, 1, True, 0
                )


@compiled
def add_deltas(
    t: Any,
    product: int,
    numbers: tuple[int, int],
    first: int,
    rows: int,
    block: int,
    count: int,
    out: int,
    out_width: int,
) -> None:
    """B (A x) of some blocks of outputs, added to rows of out_width at `out`: the rows from `first`.

    numbers: which deltas of the product, from and to.
    """
    stride = 4 * t.reduced_width
    i = 0
    while i < rows:
        adapter, some = int_at(t.row_adapters, first + i), 1
        while i + some < rows and int_at(t.row_adapters, first + i + some) == adapter:
            some += 1
        for number in range(numbers[0], numbers[1] if adapter else 0):
            delta = _delta(adapter, product, number)
            rank, begin = delta[DELTA_RANK], delta[DELTA_FIRST_BLOCK]
            x = t.reduced + 4 * ((first + i) * t.reduced_width + delta[DELTA_REDUCED])
            for one in range(max(block, begin), min(block + count, begin + delta[DELTA_BLOCKS])):
                b = delta[DELTA_B] + 4 * BLOCK * rank * (one - begin)
                to = out + 4 * (i * out_width + BLOCK * (one - block))
                multiply(
                    t.add_kernel, b, t.table, x, stride, 0, 0, 0, to, 4 * out_width, some, rank, 1, False, 0
                )
        i += some
