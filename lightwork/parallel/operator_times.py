"""How long each operator of a layer takes alone, by its rows: counted work, priced."""

from __future__ import annotations

from collections.abc import Sequence

from lightwork.cluster.pricing import CostModel
from lightwork.models.spec import ModelSpec
from lightwork.models.work import attention_work, product_work
from lightwork.runtime.effects import DTYPE_BYTES


class OperatorTimes:
    """Seconds of one layer's operators on one of tp ranks, for a step of chunks (start, rows).

    A step's decodes and prefills are dealt evenly: a part of the rows has that part of both.
    """

    def __init__(
        self, spec: ModelSpec, costs: CostModel, chunks: Sequence[tuple[int, int]], *, dtype: str, tp: int = 1
    ) -> None:
        self.spec = spec
        self.costs = costs
        self.dtype = dtype
        self.tp = tp
        self.rows = sum(count for _, count in chunks)
        decodes = [c for c in chunks if c[1] == 1]
        prefills = [c for c in chunks if c[1] > 1]
        self._attention_s = {
            name: costs.seconds(attention_work(spec, some, dtype=dtype, tp=tp)) / spec.num_layers
            for name, some in (("decode", decodes), ("prefill", prefills))
        }

    def __call__(self, operator: str, rows: int) -> float:
        if operator in self._attention_s:
            return self._attention_s[operator] * rows / self.rows
        if operator in ("gather_heads", "gather_columns"):
            return self._exchange_s("all_gather", rows, self._width(operator))
        if operator in ("reduce_out", "reduce_down"):
            return self._exchange_s("all_reduce", rows, self.spec.hidden_size)
        products = product_work(self.spec, rows, dtype=self.dtype, tp=self.tp)
        return self.costs.seconds(products[operator.partition("_")[0]])

    def _width(self, operator: str) -> int:
        s = self.spec
        return s.num_heads * s.head_size if operator == "gather_heads" else s.hidden_size

    def _exchange_s(self, kind: str, rows: int, width: int) -> float:
        return self.costs.collective_seconds(kind, range(self.tp), rows * width * DTYPE_BYTES[self.dtype])
