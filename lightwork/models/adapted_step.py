"""What adapters add to the products of the compiled step: their matrices as it reads them, and whose rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightwork.kernels.cpu import entries
from lightwork.kernels.cpu.formats import BLOCK, F32
from lightwork.kernels.cpu.state import (
    DELTA_A,
    DELTA_B,
    DELTA_BLOCKS,
    DELTA_COLUMNS,
    DELTA_FIRST_BLOCK,
    DELTA_RANK,
    DELTA_REDUCED,
    DELTAS_PER_PRODUCT,
    PRODUCTS_PER_LAYER,
    RANK_BLOCK,
    State,
    zeros,
)
from lightwork.kernels.rows import Rows
from lightwork.models.adapter_set import AdapterSet
from lightwork.models.adapters import Adapter, Delta
from lightwork.models.parts import MATRICES, each_module
from lightwork.models.spec import ModelSpec

ROWS_TOGETHER = 32
"""Of a run: longer ones are cut, for several threads."""


@dataclass(frozen=True, slots=True)
class Placed:
    """table: as state.py says. matrices: what it points to. width: of a row's inputs, reduced."""

    table: NDArray[np.int64]
    matrices: list[NDArray[np.float32]]
    width: int


def place(adapter: Adapter, spec: ModelSpec) -> Placed:
    """An adapter's matrices in the order in which the step reads them."""
    products = spec.num_layers * PRODUCTS_PER_LAYER
    table = np.zeros((products, DELTAS_PER_PRODUCT, DELTA_COLUMNS), np.int64)
    matrices: list[NDArray[np.float32]] = []
    numbers, widths = np.zeros(products, np.int64), np.zeros(products, np.int64)
    for module in each_module(spec):
        product = PRODUCTS_PER_LAYER * module.layer + MATRICES.index(module.product)
        line = table[product, numbers[product]]
        numbers[product] += 1
        delta = adapter.deltas.get(module.path)
        if delta is None:
            continue
        # Gate and up are two matrices, queries, keys and values one.
        first = 0 if module.product == "up" else module.first
        a, b = _reducing(delta), _adding(delta, first)
        matrices += [a, b]
        line[[DELTA_A, DELTA_B, DELTA_RANK]] = a.ctypes.data, b.ctypes.data, delta.rank
        line[[DELTA_REDUCED, DELTA_FIRST_BLOCK, DELTA_BLOCKS]] = widths[product], first // BLOCK, len(b)
        widths[product] += len(a) * RANK_BLOCK
    return Placed(table, matrices, int(widths.max()))


def _reducing(delta: Delta) -> NDArray[np.float32]:
    """A as [ranks / 16, inputs, 16]."""
    ranks, inputs = delta.a.shape
    laid_out = zeros((-(-ranks // RANK_BLOCK), inputs, RANK_BLOCK))
    padded = np.pad(delta.a, ((0, len(laid_out) * RANK_BLOCK - ranks), (0, 0)))
    laid_out[:] = padded.reshape(-1, RANK_BLOCK, inputs).swapaxes(1, 2)
    return laid_out


def _adding(delta: Delta, first: int) -> NDArray[np.float32]:
    """B, scaled, as [blocks, rank, 64], the blocks being those of a matrix in which its outputs begin at
    `first`."""
    outputs, rank = delta.b.shape
    before = first % BLOCK
    laid_out = zeros((-(-(before + outputs) // BLOCK), rank, BLOCK))
    padded = np.pad(delta.b, ((before, len(laid_out) * BLOCK - before - outputs), (0, 0)))
    laid_out[:] = np.float32(delta.scale) * padded.reshape(-1, BLOCK, rank).swapaxes(1, 2)
    return laid_out


class AdaptedRows:
    """Tells a step which of its rows have which adapter."""

    def __init__(self, adapters: AdapterSet[Placed], state: State) -> None:
        self._adapters = adapters
        self._state = state
        self._used: list[Placed | None] = []
        state.set(runs=0)

    def fill(self, rows: Rows) -> None:
        """Raises InvariantError for an adapter that is not there."""
        # Held until the next step: whoever replaces an adapter does not wait for this one.
        self._used = self._adapters.of(rows.models)
        if not any(self._used):
            self._state.set(runs=0)
            return
        tables = np.array([p.table.ctypes.data if p is not None else 0 for p in self._used], np.int64)
        of_row = tables[rows.seqs]
        runs = _runs(of_row)
        width = max(placed.width for placed in self._used if placed is not None)
        self._state.set(
            runs=len(runs),
            run_table=runs,
            row_adapters=of_row,
            reduced=zeros((len(of_row), width)),
            reduced_width=width,
            reduce_kernel=entries.kernel(F32, vectors=1, streamed=False),
            add_kernel=entries.kernel(F32, streamed=False),
        )


def _runs(of_row: NDArray[np.int64]) -> NDArray[np.int64]:
    """Neighbouring rows with the same adapter, cut where there are many: first row, rows, adapter."""
    begins = np.flatnonzero(np.diff(of_row, prepend=-1))
    ends = [*begins[1:], len(of_row)]
    runs = [
        (first, min(ROWS_TOGETHER, end - first), of_row[begin])
        for begin, end in zip(begins, ends, strict=True)
        for first in range(begin, end, ROWS_TOGETHER)
        if of_row[begin]
    ]
    return np.array(runs, np.int64)
