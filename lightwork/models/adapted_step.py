"""What adapters add to the products of the compiled step: their matrices as it reads them, and whose rows.

r rank
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightwork.kernels.cpu.formats import BLOCK
from lightwork.kernels.cpu.state import (
    DELTA_A,
    DELTA_B,
    DELTA_COLUMNS,
    DELTA_FIRST,
    DELTA_OUTPUTS,
    DELTA_RANK,
    DELTAS_PER_PRODUCT,
    PRODUCTS_PER_LAYER,
    State,
    zeros,
)
from lightwork.kernels.rows import Rows
from lightwork.models.adapter_set import AdapterSet
from lightwork.models.adapters import Adapter, Delta
from lightwork.models.parts import MATRICES, each_module
from lightwork.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Placed:
    """table: as state.py says. matrices: what it points to. width: of a row's inputs, reduced."""

    table: NDArray[np.int64]
    matrices: list[NDArray[np.float32]]
    width: int


def place(adapter: Adapter, spec: ModelSpec) -> Placed:
    """An adapter's matrices in the order in which the step reads them."""
    lines = spec.num_layers * PRODUCTS_PER_LAYER * DELTAS_PER_PRODUCT
    table = np.zeros((lines, DELTA_COLUMNS), np.int64)
    matrices: list[NDArray[np.float32]] = []
    used: dict[int, int] = {}
    for module in each_module(spec):
        product = PRODUCTS_PER_LAYER * module.layer + MATRICES.index(module.product)
        number = used[product] = used.get(product, -1) + 1
        delta = adapter.deltas.get(module.path)
        if delta is None:
            continue
        a, b = _laid_out(delta)
        matrices += [a, b]
        line = table[DELTAS_PER_PRODUCT * product + number]
        line[[DELTA_A, DELTA_RANK, DELTA_B]] = a.ctypes.data, delta.rank, b.ctypes.data
        line[[DELTA_FIRST, DELTA_OUTPUTS]] = module.first, module.outputs
    ranks = table[:, DELTA_RANK].reshape(-1, DELTAS_PER_PRODUCT).sum(1)
    return Placed(table, matrices, int(ranks.max()))


def _laid_out(delta: Delta) -> Iterator[NDArray[np.float32]]:
    """A [r, inputs], and B [blocks of outputs, r, 64], scaled."""
    a = zeros(delta.a.shape)
    a[:] = delta.a
    yield a
    outputs = len(delta.b)
    b = zeros((-(-outputs // BLOCK), delta.rank, BLOCK))
    padded = np.pad(delta.b, ((0, b.shape[0] * BLOCK - outputs), (0, 0)))
    b[:] = np.float32(delta.scale) * padded.reshape(-1, BLOCK, delta.rank).swapaxes(1, 2)
    yield b


class AdaptedRows:
    """Tells a step which of its rows have which adapter."""

    def __init__(self, adapters: AdapterSet[Placed], state: State) -> None:
        self._adapters = adapters
        self._state = state
        self._used: list[Placed | None] = []
        state.set(adapted=0)

    def fill(self, rows: Rows) -> None:
        """Raises InvariantError for an adapter that is not there."""
        # Held until the next step: whoever replaces an adapter does not wait for this one.
        self._used = self._adapters.of(rows.models)
        tables = np.array([p.table.ctypes.data if p is not None else 0 for p in self._used], np.int64)
        of_row = tables[rows.seqs] if len(tables) else tables
        adapted = of_row.nonzero()[0]
        self._state.set(adapted=len(adapted))
        if len(adapted):
            width = max(placed.width for placed in self._used if placed is not None)
            self._state.set(
                adapted_rows=adapted,
                row_adapters=of_row,
                reduced=zeros((len(of_row), width)),
                reduced_width=width,
            )
