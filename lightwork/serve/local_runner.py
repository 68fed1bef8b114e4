"""Steps carried out by a model on this machine: the compiled step of a CPU, or the torch reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightwork.decode.choose import compiled
from lightwork.kernels.rows import Rows
from lightwork.memory.kv import KVCache
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel
from lightwork.serve.rows import build_rows
from lightwork.serve.schedulers import Step
from lightwork.serve.scores import LogitScores

if TYPE_CHECKING:
    from lightwork.models import Model
    from lightwork.models.compiled import CompiledModel


class LocalRunner:
    """Runs one step at a time on a worker thread, so that the kernel's thread stays free for requests.

    model: weights, and their forward. kv: block tables of the engine it serves; the arrays behind them are
    made here.
    """

    depth = 1

    def __init__(self, kernel: Kernel, model: Model | CompiledModel, kv: KVCache) -> None:
        self.kernel = kernel
        self.model = model
        self.kv = kv
        self.pool: Any = model.new_kv(kv.total, kv.block_size)
        compiled()  # now, rather than in the first step

    def run(self, step: Step) -> Future:
        """Resolves to the step's LogitScores."""
        rows, first = build_rows(step, self.kv)
        return self.kernel.offload(self._forward, step, rows, first)

    def _forward(self, step: Step, rows: Rows, first: list[int]) -> LogitScores:
        for copy in step.copies:
            self.pool.copy(
                range(copy.src, copy.src + copy.num_slots), range(copy.dst, copy.dst + copy.num_slots)
            )
        return LogitScores(step, self.model.logits(rows, self.pool), first)
