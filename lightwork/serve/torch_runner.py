"""Steps carried out by torch on this machine: the reference runner, on CPU and GPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightwork.decode.sampling import Floats, Pick, describe, pick
from lightwork.kernels.rows import Rows
from lightwork.memory.kv import KVCache
from lightwork.models import Model
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel
from lightwork.serve.rows import build_rows
from lightwork.serve.schedulers import Step


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


class LogitScores:
    """Choices made from logits. first: per chunk, the index of its first scored row in logits_NV."""

    __slots__ = ("_first", "_logits_NV", "_step")

    def __init__(self, step: Step, logits_NV: Floats, first: list[int]) -> None:
        self._step = step
        self._logits_NV = logits_NV
        self._first = first

    def pick(self, chunk: int, node: int, emitted: Sequence[int]) -> Pick:
        seq = self._step.chunks[chunk].seq
        end = self._first[chunk + 1] if chunk + 1 < len(self._first) else len(self._logits_NV)
        row = end - len(self._step.draft(chunk)) + node
        output = (*seq.tokens[seq.prompt_len :], *emitted) if seq.sampling.penalised else ()
        prompt = seq.tokens[: seq.prompt_len] if seq.sampling.penalised else ()
        return pick(self._logits_NV[row], seq.sampling, seq.known + len(emitted), prompt, output)

    def prompt(self, chunk: int, num_top: int) -> list[Pick]:
        part = self._step.chunks[chunk]
        seq = part.seq
        successors = seq.tokens[part.start + 1 : min(part.end, seq.prompt_len - 1) + 1]
        first = self._first[chunk]
        return [
            describe(np.asarray(self._logits_NV[first + i]), t, num_top) for i, t in enumerate(successors)
        ]
