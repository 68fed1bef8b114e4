"""Steps carried out by Triton's kernels on one GPU; plain choices are made there, so that logits stay there.

N scored rows  V vocabulary
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from lightwork.decode.proposers import ROOT, Draft
from lightwork.decode.sampling import Floats, Pick, Sampling, describe, pick
from lightwork.errors import InvariantError
from lightwork.kernels.gpu.mirror import Mirror
from lightwork.kernels.gpu.pick import NOT_FINITE
from lightwork.kernels.gpu.pick import pick as pick_on_device
from lightwork.kernels.rows import Rows
from lightwork.memory.host import Run, runs
from lightwork.memory.kv import KVCache
from lightwork.models import Model
from lightwork.models.gpu_step import Feed, GpuStep
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel
from lightwork.serve.embedding import AT_ONCE, Text, Vector, embed_here
from lightwork.serve.rows import build_rows, fed_rows
from lightwork.serve.schedulers import Chunk, Step
from lightwork.serve.scores import restrict, text_of

T = TypeVar("T")


class GpuRunner:
    """Runs one step at a time, which a worker thread starts and waits for.

    model: dense and Llama-like (`gpu_step.supports`). kv: block tables of the engine it serves; the tensors
    behind them are made here. ahead: the next step is formed meanwhile and started at once; what the device
    chose it finds there.
    """

    alive = True

    def __init__(self, kernel: Kernel, model: Model, kv: KVCache, *, ahead: bool = False) -> None:
        self.depth = 2 if ahead else 1
        self.feeds = ahead
        self.kernel = kernel
        self.step = GpuStep(model)
        self.kv = kv
        self.pool = model.new_kv(kv.total, kv.block_size)
        self.host: Any = model.new_host_kv(kv.host.total, kv.block_size) if kv.host is not None else None
        self._mirror, self._fed = Mirror(model.device), Mirror(model.device)
        self._before: _Started | None = None
        self._one_at_a_time = Lock()
        if self.step.device.type == "cuda":
            self.step.warm_up(self.pool)

    def run(self, step: Step) -> Awaitable[PickedScores]:
        """Its value is the step's PickedScores."""
        rows, first = build_rows(step, self.kv)
        if not self.feeds:
            return self.kernel.offload(self._forward, step, rows, first)
        return self._scores(self.kernel.offload(self._start, step, rows, first, thread="steps"))

    def _forward(self, step: Step, rows: Rows, first: list[int]) -> PickedScores:
        return self._start(step, rows, first).scores()

    async def _scores(self, starting: Future) -> PickedScores:
        started: _Started = await starting
        scores: PickedScores = await self.kernel.offload(started.scores)
        return scores

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

    def embed(self, texts: Sequence[Text]) -> Coroutine[Any, Any, list[Vector]]:
        """By the model's own forward: the step's keeps buffers and graphs for the pool of its steps."""
        start = partial(self.kernel.offload, self._alone, thread="embed")
        return embed_here(self.step.model, texts, self.kv.block_size, start, AT_ONCE)

    def _alone(self, fn: Callable[..., T], *args: Any) -> T:
        """While a step is being captured nobody else may use the device."""
        with self._one_at_a_time:
            return fn(*args)

    def _start(self, step: Step, rows: Rows, first: list[int]) -> _Started:
        with self._one_at_a_time:
            return self._begin(step, rows, first)

    def _begin(self, step: Step, rows: Rows, first: list[int]) -> _Started:
        """Put a step behind the one before, without waiting for it but for what only the host can choose."""
        before, self._before = self._before, None
        there = before is not None and not rows.models
        placed = [(i, j) for i, j in step.fed if there and _plain(step.chunks[i])]
        fed = {
            i: before.scores().next_token(j) if before is not None else 0
            for i, j in step.fed
            if (i, j) not in placed
        }
        last = fed_rows(rows, step)
        rows.tokens[last] = [fed.get(i, 0) for i, _ in step.fed]
        for src, dst, num in step.copies:
            self.pool.copy(range(src, src + num), range(dst, dst + num))
        for blocks in step.left:
            self.pool.discard(blocks)
        feed = None
        if before is not None and placed:
            at = [int(row) for row, pair in zip(last, step.fed, strict=True) if pair in placed]
            feed = self._feed(at, [before.last[j] for _, j in placed], before.chosen)
        logits_NV = self.step.forward(rows, self.pool, feed)
        chosen = self._pick(step, rows, first, logits_NV)
        ends = [*first[1:], len(rows.scored)]
        moved = [
            n
            for i, (chunk, end) in enumerate(zip(step.chunks, ends, strict=True))
            for n in (_probes(step.draft(i), end) if _plain(chunk) else range(first[i], end))
        ]
        started = _Started(step, first, ends, chosen, logits_NV[moved] if moved else None, moved, fed)
        if self.feeds:
            self._before = started
        return started

    def _feed(self, rows: Sequence[int], picks: Sequence[int], chosen: Tensor) -> Feed:
        """Where in a step the tokens are wanted that the one before chose at `picks`."""
        self._fed.begin()
        at, of = (
            self._fed.put(name, np.array(numbers, np.int64))[: len(numbers)]
            for name, numbers in (("rows", rows), ("picks", picks))
        )
        self._fed.end()
        return at, chosen[of].clamp(min=0)

    def _pick(self, step: Step, rows: Rows, first: list[int], logits_NV: Tensor) -> Tensor:
        num = len(rows.scored)
        if num == 0:
            return logits_NV.new_empty(0, dtype=torch.int32)
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
        return chosen


class _Started:
    """A step that the device has been told. chosen: token of each scored row, there. last: per chunk, its
    last scored row. logits: of the scored rows `moved`, about which the host is asked."""

    def __init__(
        self,
        step: Step,
        first: list[int],
        ends: Sequence[int],
        chosen: Tensor,
        logits: Tensor | None,
        moved: Sequence[int],
        fed: Mapping[int, int],
    ) -> None:
        self.step = step
        self.first = first
        self.last = [end - 1 for end in ends]
        self.chosen = chosen
        self._moved = moved
        self._fed = fed
        self._tokens = _to_host(chosen)
        self._logits = _to_host(logits) if logits is not None else None
        self._copied: Any = None
        if chosen.device.type == "cuda":
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def scores(self) -> PickedScores:
        """Wait for its end. From any thread."""
        if self._copied is not None:
            self._copied.synchronize()
        tokens = [int(token) for token in self._tokens.numpy()]
        rows = self._logits.numpy() if self._logits is not None else ()
        return PickedScores(
            self.step, self.first, tokens, dict(zip(self._moved, rows, strict=True)), self._fed
        )


def _probes(draft: Draft, end: int) -> list[int]:
    """Scored rows that are probes, of a draft whose rows end there."""
    return [end - len(draft) + node for node, token in enumerate(draft.tokens) if token < 0]


def _to_host(x: Tensor) -> Tensor:
    """A copy that is there when the device has come so far."""
    if x.device.type == "cpu":
        return x
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    return host.copy_(x, non_blocking=True)


def _plain(chunk: Chunk) -> bool:
    """Are the device's picks all that will be asked of this chunk?"""
    how: Sampling = chunk.seq.sampling
    filtered = how.temperature > 0.0 and (how.top_k > 0 or how.top_p < 1.0 or how.min_p > 0.0)
    changed = how.penalised or bool(how.logit_bias)
    reported = how.logprobs is not None or chunk.seq.request.prompt_logprobs is not None
    return not (filtered or changed or reported or chunk.seq.request.constraint is not None)


class PickedScores:
    """Choices made on the device, and made here from logits where those were moved.

    first: per chunk, its first scored row. tokens: per scored row. logits: of scored rows that need more.
    fed: see `LogitScores`.
    """

    __slots__ = ("_fed", "_first", "_logits", "_step", "_tokens", "_wrong")

    def __init__(
        self,
        step: Step,
        first: list[int],
        tokens: list[int],
        logits: Mapping[int, Floats],
        fed: Mapping[int, int],
    ) -> None:
        self._step = step
        self._fed = fed
        self._first = first
        self._tokens = tokens
        self._logits = logits
        self._wrong: dict[int, Exception] = {}
        for i, (chunk, known) in enumerate(zip(step.chunks, step.lengths(), strict=True)):
            if chunk.seq.request.constraint is not None and chunk.end == known:
                self._restrict(i)

    def _restrict(self, chunk: int) -> None:
        try:
            restrict(self._step, chunk, self._fed, lambda node: self._logits[self._row(chunk, node)])
        except Exception as error:  # it ends this sequence, when it is asked for; not the step
            self._wrong[chunk] = error

    def pick(self, chunk: int, node: int, emitted: Sequence[int], top: int | None = None) -> Pick:
        if top is not None:
            raise InvariantError(
                "probabilities of other tokens stay on the device",
                expected="a verifier that asks for none",
                fix="Match()",
            )
        if chunk in self._wrong:
            raise self._wrong[chunk]
        seq, row = self._step.chunks[chunk].seq, self._row(chunk, node)
        position = self._step.lengths()[chunk] + len(emitted)
        if row in self._logits:
            text = text_of(self._step, chunk, self._fed)
            output = (*text[seq.prompt_len :], *emitted)
            return pick(self._logits[row], seq.sampling, position, text[: seq.prompt_len], output)
        if self._tokens[row] == NOT_FINITE:
            raise InvariantError(
                f"the model's scores at position {position} are not finite",
                expected="finite logits",
                fix="check the weights",
            )
        return Pick(self._tokens[row])

    def probes(self, chunk: int, nodes: Sequence[int]) -> Floats:
        return np.stack([self._logits[self._row(chunk, node)] for node in nodes])

    def _row(self, chunk: int, node: int) -> int:
        """The scored row of a draft node, or of ROOT."""
        end = self._first[chunk + 1] if chunk + 1 < len(self._first) else len(self._tokens)
        return end - len(self._step.draft(chunk)) + node

    def next_token(self, chunk: int) -> int:
        """See `LogitScores`."""
        try:
            return self.pick(chunk, ROOT, ()).token
        except Exception:
            return 0

    def prompt(self, chunk: int, num_top: int) -> list[Pick]:
        part = self._step.chunks[chunk]
        seq = part.seq
        successors = seq.tokens[part.start + 1 : min(part.end, seq.prompt_len - 1) + 1]
        first = self._first[chunk]
        return [describe(self._logits[first + i], t, num_top) for i, t in enumerate(successors)]
