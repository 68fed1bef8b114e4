"""Steps whose layers are carried out by a plan of nano-operations, on the virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from lightwork.cluster.pricing import CostModel
from lightwork.models.spec import ModelSpec
from lightwork.models.work import head_work
from lightwork.parallel.op_plan import OpPlan, serial_plan
from lightwork.parallel.operator_times import OperatorTimes
from lightwork.parallel.overlap import Seconds, seconds_of
from lightwork.serve.cost import num_scored, rows_of, with_forming
from lightwork.serve.schedulers import Step

Times = Callable[[Sequence[tuple[int, int]]], Seconds]
"""Chunks (start, rows) of a step -> how long operators take alone."""


class OverlapCost:
    """Steps of one model on tp devices, by the pipeline or one operator after another, whichever is faster.

    A step with other rows than the pipeline's has its ranges fitted. step_s: host time per step that is not
    hidden. times: of operators alone; None: as priced.
    """

    def __init__(
        self,
        spec: ModelSpec,
        costs: CostModel,
        pipeline: OpPlan,
        *,
        dtype: str,
        tp: int = 1,
        step_s: float = 0.0,
        times: Times | None = None,
    ) -> None:
        self.spec = spec
        self.costs = costs
        self.pipeline = pipeline
        self.dtype = dtype
        self.tp = tp
        self.step_s = step_s
        self._times = times or self._priced
        self._fitted = lru_cache(4096)(pipeline.fitted)

    def stages(self, step: Step) -> Sequence[float]:
        """One stage: layers, then scores of the rows that need them."""
        head = head_work(self.spec, num_scored(step), dtype=self.dtype, tp=self.tp)
        stage_s = self.layers_s(rows_of(step)) + self.costs.seconds([head]) + self.step_s
        return with_forming([stage_s], step)

    def layers_s(self, chunks: Sequence[tuple[int, int]]) -> float:
        """Seconds of all layers for chunks (start, rows)."""
        alone = self._times(chunks)
        rows = sum(count for _, count in chunks)
        plans = {serial_plan(rows, self.tp), self._fitted(rows)}
        sharing = self.costs.cluster.device.sharing
        return min(seconds_of(plan, self.spec.num_layers, alone, sharing) for plan in plans)

    def _priced(self, chunks: Sequence[tuple[int, int]]) -> Seconds:
        return OperatorTimes(self.spec, self.costs, chunks, dtype=self.dtype, tp=self.tp)
