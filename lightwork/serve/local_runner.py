"""Steps carried out by a model on this machine: the compiled step of a CPU, or the torch reference."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lightwork.decode.choose import compiled
from lightwork.errors import SpecError
from lightwork.kernels.rows import Rows
from lightwork.memory.host import Run, runs
from lightwork.memory.kv import KVCache
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel
from lightwork.serve import embedding
from lightwork.serve.embedding import ShowsStates, Text, Vector, embed_here, refused
from lightwork.serve.rows import build_rows, fed_rows
from lightwork.serve.schedulers import Step
from lightwork.serve.scores import LogitScores

if TYPE_CHECKING:
    from lightwork.models.spec import ModelSpec


BRIEF_S = 0.01
"""A step that takes less runs on the kernel's thread: handing it to another and back takes a tenth of a
millisecond, and requests can wait so long."""


PIECE_BYTES, PAUSES = 1 << 20, 4
"""Keys and values are copied so much at a time; while a step runs on the same cores, pauses last so many
times as long as a piece."""


class Forward(Protocol):
    """What computes steps: `Model`, `CompiledModel`, `EncoderDecoder`.

    new_kv, new_host_kv: memory for keys and values, which has copy, pull and discard. logits: (rows, that
    memory) -> float32 [N, V], keys and values written. shared_keys: see `Step.shared`, of the last call.
    """

    @property
    def spec(self) -> ModelSpec: ...
    @property
    def shared_keys(self) -> Sequence[int]: ...
    def new_kv(self, num_blocks: int, block_size: int, *, shared: int | None = None) -> Any: ...
    def new_host_kv(self, num_blocks: int, block_size: int) -> Any: ...
    def logits(self, rows: Rows, kv: Any) -> NDArray[np.float32]: ...


class LocalRunner:
    """Runs one step at a time, long ones on a worker thread: the kernel's stays free for requests.

    model: weights, and their forward. kv: block tables of the engine it serves; the arrays behind them are
    made here, in memory that others can map if there is some (`shared`, see `models.arena`). ahead: the next
    step is formed meanwhile, and begins on a thread of steps as soon as one has ended. Raises SpecError for a
    model whose texts cannot share keys and values, if those of the engine do.
    """

    alive = True

    def __init__(
        self,
        kernel: Kernel,
        model: Forward,
        kv: KVCache,
        shared: int | None = None,
        *,
        ahead: bool = False,
    ) -> None:
        if model.spec.encoder_layers and kv.prefix_cache:
            raise SpecError(
                "sources that begin alike have no keys and values in common: an encoder reads all of each",
                expected="an engine that shares none",
                fix="KVCache(prefix_cache=False)",
            )
        self.depth = 2 if ahead else 1
        self.feeds = ahead
        self.kernel = kernel
        self.model = model
        self.kv = kv
        self.pool: Any = model.new_kv(kv.total, kv.block_size, shared=shared)
        self.host: Any = model.new_host_kv(kv.host.total, kv.block_size) if kv.host is not None else None
        self._last_rows, self._last_s = 1, inf
        self._computing = False
        self._before: LogitScores | None = None
        compiled()  # now, rather than in the first step

    def run(self, step: Step) -> Future:
        """Resolves to the step's LogitScores."""
        rows, first = build_rows(step, self.kv)
        if self.feeds:
            return self.kernel.offload(self._forward, step, rows, first, thread="steps")
        expected_s = self._last_s * max(1.0, len(rows.tokens) / self._last_rows)
        start = self.kernel.attempt if expected_s < BRIEF_S else self.kernel.offload
        return start(self._forward, step, rows, first)

    async def embed(self, texts: Sequence[Text]) -> list[Vector]:
        if not isinstance(self.model, ShowsStates):
            raise refused("the model is no decoder")
        start = partial(self.kernel.offload, thread="embed")
        return await embed_here(self.model, texts, self.kv.block_size, start, embedding.PART)

    def pull(
        self, pool: Any, src: Sequence[int], dst: Sequence[int], num_tokens: int
    ) -> Coroutine[Any, Any, None]:
        """Neighbours are copied as one; the last block may hold less."""
        num = -(-num_tokens // self.kv.block_size)
        return self._copy(self.pool, pool, runs(src[:num], dst[:num]))

    def swap_out(self, runs: Sequence[Run]) -> Coroutine[Any, Any, None]:
        return self._copy(self.host, self.pool, runs)

    def swap_in(self, runs: Sequence[Run]) -> Coroutine[Any, Any, None]:
        return self._copy(self.pool, self.host, runs)

    async def _copy(self, to: Any, source: Any, runs: Sequence[Run]) -> None:
        """In pieces, on a thread that gives way to steps, with pauses while one runs beside."""
        for piece in _pieces(runs, max(1, PIECE_BYTES * to.num_blocks // to.nbytes)):
            took_s = await self.kernel.offload(self._timed, to.pull, source, piece, background=True)
            if self._computing:
                await self.kernel.sleep(PAUSES * took_s)

    def _timed(self, fn: Callable[..., object], *args: object) -> float:
        begin_s = self.kernel.now()
        fn(*args)
        return self.kernel.now() - begin_s

    def _forward(self, step: Step, rows: Rows, first: list[int]) -> LogitScores:
        begin_s = self.kernel.now()
        before, self._before = self._before, None
        fed = {i: before.next_token(j) if before is not None else 0 for i, j in step.fed}
        if fed:
            rows.tokens[fed_rows(rows, step)] = [*fed.values()]
        self._computing = True
        try:
            for src, dst, num in step.copies:
                self.pool.copy(range(src, src + num), range(dst, dst + num))
            for blocks in step.left:
                self.pool.discard(blocks)
            scores = LogitScores(step, self.model.logits(rows, self.pool), first, fed)
            step.shared = self.model.shared_keys
        finally:
            self._computing = False
        if self.feeds:
            scores.keep()
            self._before = scores
        self._last_rows, self._last_s = len(rows.tokens), self.kernel.now() - begin_s
        return scores


def _pieces(runs: Sequence[Run], blocks: int) -> Iterator[list[Run]]:
    """Runs of so many blocks together, or fewer."""
    piece, room = [], blocks
    for src, dst, num in runs:
        done = 0
        while done < num:
            some = min(room, num - done)
            piece.append((src + done, dst + done, some))
            done, room = done + some, room - some
            if not room:
                yield piece
                piece, room = [], blocks
    if piece:
        yield piece
