"""What adapters add to the products of a layer, to their own rows only: B (A x), in float32.

A row's inputs are reduced to the ranks of its adapter in a phase of its own; whoever computes a block of
outputs then adds its part, before anything that follows the product. The order of a row's sums is fixed, so
its bits depend neither on who shares the step nor on threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightwork.kernels.cpu.compiled import compiled, summing
from lightwork.kernels.cpu.formats import BLOCK
from lightwork.kernels.cpu.primitives import floats, int_at, ints
from lightwork.kernels.cpu.sharing import barrier, take
from lightwork.kernels.cpu.state import (
    DELTA_A,
    DELTA_B,
    DELTA_COLUMNS,
    DELTA_FIRST,
    DELTA_OUTPUTS,
    DELTA_RANK,
    DELTAS_PER_PRODUCT,
)

RANKS_TOGETHER = 8
"""Of a row, reduced by one thread at a time: a single row is then shared out, too."""


@summing
def _dot(x: Any, weight: Any) -> Any:
    total = np.float32(0)
    for k in range(x.shape[0]):
        total += x[k] * weight[k]
    return total


@compiled
def _delta(t: Any, r: int, product: int, number: int) -> Any:
    """A line of the table of row r's adapter. product: its own number, over all layers."""
    line = DELTAS_PER_PRODUCT * product + number
    return ints(int_at(t.row_adapters, r) + 8 * DELTA_COLUMNS * line, DELTA_COLUMNS)


@compiled
def reduce_phase(t: Any, thread: int, phase: int, product: int, buffer: int, size: int) -> int:
    """A x of every row that has an adapter, if there are any; the next phase. x: rows of a buffer."""
    if t.adapted == 0:
        return phase
    groups = (t.reduced_width + RANKS_TOGETHER - 1) // RANKS_TOGETHER
    while True:
        item, last = take(t, phase, thread, t.adapted * groups, 1)
        if item == last:
            return barrier(t, phase)
        r, begin = int_at(t.adapted_rows, item // groups), item % groups * RANKS_TOGETHER
        x = floats(buffer + 4 * r * t.width, size)
        out = floats(t.reduced + 4 * r * t.reduced_width, t.reduced_width)
        before = 0
        for number in range(DELTAS_PER_PRODUCT):
            delta = _delta(t, r, product, number)
            first, end = max(begin - before, 0), min(begin + RANKS_TOGETHER - before, delta[DELTA_RANK])
            for k in range(first, end):
                out[before + k] = _dot(x, floats(delta[DELTA_A] + 4 * k * size, size))
            before += delta[DELTA_RANK]


@compiled
def add_deltas(
    t: Any, product: int, first: int, rows: int, left: int, width: int, out: int, out_width: int
) -> None:
    """Outputs left .. left + width of B (A x), added to rows of out_width at `out`, the rows from `first`."""
    for i in range(rows):
        r = first + i
        if int_at(t.row_adapters, r) == 0:
            continue
        reduced = t.reduced + 4 * r * t.reduced_width
        for number in range(DELTAS_PER_PRODUCT):
            delta = _delta(t, r, product, number)
            rank, begin = delta[DELTA_RANK], delta[DELTA_FIRST]
            at, end = max(left, begin), min(left + width, begin + delta[DELTA_OUTPUTS])
            while rank > 0 and at < end:
                # B lies in blocks of 64 outputs, of all ranks one after the other.
                block, inside = (at - begin) // BLOCK, (at - begin) % BLOCK
                some = min(end - at, BLOCK - inside)
                b = delta[DELTA_B] + 4 * (block * rank * BLOCK + inside)
                _add_block(floats(reduced, rank), b, floats(out + 4 * (i * out_width + at - left), some))
                at += some
            reduced += 4 * rank


@compiled
def _add_block(reduced: Any, b: int, out: Any) -> None:
    for k in range(reduced.shape[0]):
        row = floats(b + 4 * k * BLOCK, out.shape[0])
        for j in range(out.shape[0]):
            out[j] += reduced[k] * row[j]
