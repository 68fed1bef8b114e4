"""Steps carried out by torch on this machine: the reference runner, on CPU and GPU."""

from __future__ import annotations

from lightwork.decode.choose import compiled
from lightwork.kernels.rows import Rows
from lightwork.memory.kv import KVCache
from lightwork.models import Model
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel
from lightwork.serve.rows import build_rows
from lightwork.serve.schedulers import Step
from lightwork.serve.scores import LogitScores


class TorchRunner:
    """Runs one step at a time on a worker thread, so that the kernel's thread stays free for requests.

    model: weights and tokenizer. kv: block tables of the engine it serves; the tensors behind them are made
    here.
    """

    depth = 1

    def __init__(self, kernel: Kernel, model: Model, kv: KVCache) -> None:
        self.kernel = kernel
        self.model = model
        self.kv = kv
        self.pool = model.new_kv(kv.total, kv.block_size)
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
        logits_NV = self.model.forward(rows, self.pool)
        return LogitScores(step, logits_NV.cpu().numpy(), first)
