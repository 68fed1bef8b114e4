"""Steps carried out by Triton's kernels on one GPU; plain choices are made there, so that logits stay there.

N scored rows  V vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lightwork.decode.sampling import Floats, Pick, Sampling, describe, pick
from lightwork.errors import InvariantError
from lightwork.kernels.gpu.mirror import Mirror
from lightwork.kernels.gpu.pick import NOT_FINITE
from lightwork.kernels.gpu.pick import pick as pick_on_device
from lightwork.kernels.rows import Rows
from lightwork.memory.host import Run, runs
from lightwork.memory.kv import KVCache
from lightwork.models import Model
from lightwork.models.gpu_step import GpuStep
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel
from lightwork.serve.rows import build_rows
from lightwork.serve.schedulers import Chunk, Step


class GpuRunner:
    """Runs one step at a time on a worker thread.

    model: dense and Llama-like (`gpu_step.supports`). kv: block tables of the engine it serves; the tensors
    behind them are made here.
    """

    depth = 1
    feeds = False
    alive = True

    def __init__(self, kernel: Kernel, model: Model, kv: KVCache) -> None:
        self.kernel = kernel
        self.step = GpuStep(model)
        self.kv = kv
        self.pool = model.new_kv(kv.total, kv.block_size)
        self.host: Any = model.new_host_kv(kv.host.total, kv.block_size) if kv.host is not None else None
        self._mirror = Mirror(model.device)
        if self.step.device.type == "cuda":
            self.step.warm_up(self.pool)

    def run(self, step: Step) -> Future:
        """Resolves to the step's PickedScores."""
        rows, first = build_rows(step, self.kv)
        return self.kernel.offload(self._forward, step, rows, first)

    def pull(self, pool: Any, src: Sequence[int], dst: Sequence[int], num_tokens: int) -> Future:
        """Copied between devices if need be, neighbours as one; the last block may hold less."""
        num = -(-num_tokens // self.kv.block_size)
        return self.kernel.offload(self.pool.pull, pool, runs(src[:num], dst[:num]), background=True)

    def swap_out(self, runs: Sequence[Run]) -> Future:
        """On a thread that gives way to steps."""
        return self.kernel.offload(self.host.pull, self.pool, runs, background=True)

    def swap_in(self, runs: Sequence[Run]) -> Future:
        """On a thread that gives way to steps."""
        return self.kernel.offload(self.pool.pull, self.host, runs, background=True)

    def _forward(self, step: Step, rows: Rows, first: list[int]) -> PickedScores:
        for src, dst, num in step.copies:
            self.pool.copy(range(src, src + num), range(dst, dst + num))
        for blocks in step.left:
            self.pool.discard(blocks)
        logits_NV = self.step.forward(rows, self.pool)
        tokens = self._pick(step, rows, first, logits_NV)
        ends = [*first[1:], len(rows.scored)]
        moved = [
            n
            for chunk, start, end in zip(step.chunks, first, ends, strict=True)
            if not _plain(chunk)
            for n in range(start, end)
        ]
        host = dict(zip(moved, logits_NV[moved].cpu().numpy(), strict=True)) if moved else {}
        return PickedScores(step, first, tokens, host)

    def _pick(self, step: Step, rows: Rows, first: list[int], logits_NV: Tensor) -> list[int]:
        num = len(rows.scored)
        if num == 0:
            return []
        counts = np.diff([*first, num])
        how = [chunk.seq.sampling for chunk in step.chunks]
        seeds = np.array([s.seed % (1 << 64) for s in how], np.uint64).view(np.int64)
        temperatures = np.array([s.temperature for s in how], float)
        mirror = self._mirror
        mirror.begin()
        chosen = pick_on_device(
            logits_NV,
            mirror.put("seeds", np.repeat(seeds, counts)),
            mirror.put("positions", (rows.positions[rows.scored] + 1).astype(np.int32)),
            mirror.put("temperatures", np.repeat(temperatures, counts)),
        )
        mirror.end()
        return [int(token) for token in chosen.cpu().numpy()]


def _plain(chunk: Chunk) -> bool:
    """Are the device's picks all that will be asked of this chunk?"""
    how: Sampling = chunk.seq.sampling
    filtered = how.temperature > 0.0 and (how.top_k > 0 or how.top_p < 1.0 or how.min_p > 0.0)
    changed = how.penalised or bool(how.logit_bias)
    reported = how.logprobs is not None or chunk.seq.request.prompt_logprobs is not None
    return not (filtered or changed or reported)


class PickedScores:
    """Choices made on the device, and made here from logits where those were moved.

    first: per chunk, its first scored row. tokens: per scored row. logits: of scored rows that need more.
    """

    __slots__ = ("_first", "_logits", "_step", "_tokens")

    def __init__(self, step: Step, first: list[int], tokens: list[int], logits: Mapping[int, Floats]) -> None:
        self._step = step
        self._first = first
        self._tokens = tokens
        self._logits = logits

    def pick(self, chunk: int, node: int, emitted: Sequence[int]) -> Pick:
        seq = self._step.chunks[chunk].seq
        end = self._first[chunk + 1] if chunk + 1 < len(self._first) else len(self._tokens)
        row = end - len(self._step.draft(chunk)) + node
        position = seq.known + len(emitted)
        if row in self._logits:
            output = (*seq.tokens[seq.prompt_len :], *emitted)
            return pick(self._logits[row], seq.sampling, position, seq.tokens[: seq.prompt_len], output)
        if self._tokens[row] == NOT_FINITE:
            raise InvariantError(
                f"the model's scores at position {position} are not finite",
                expected="finite logits",
                fix="check the weights",
            )
        return Pick(self._tokens[row])

    def prompt(self, chunk: int, num_top: int) -> list[Pick]:
        part = self._step.chunks[chunk]
        seq = part.seq
        successors = seq.tokens[part.start + 1 : min(part.end, seq.prompt_len - 1) + 1]
        first = self._first[chunk]
        return [describe(self._logits[first + i], t, num_top) for i, t in enumerate(successors)]
