"""Steps of a model that is worker processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future as Made
from typing import Any, TypeVar

import numpy as np

from lightwork.errors import LightworkError, SpecError
from lightwork.memory.host import Run
from lightwork.memory.kv import KVCache
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel
from lightwork.serve import embedding
from lightwork.serve.embedding import Passes, Text, Vector
from lightwork.serve.rows import build_rows, fed_rows
from lightwork.serve.schedulers import Step
from lightwork.serve.scores import LogitScores
from lightwork.serve.workers import Allocate, Command, Embed, Forward, Swap, Workers

T = TypeVar("T")


class WorkersRunner:
    """Steps of a `Workers` model: as many at once as it has stages.

    kv: block tables of the engine it serves; keys and values are where the workers are, for one runner at a
    time. ahead: one more, which waits at the first stage; if that is the only one, for its tokens, and is
    sent by the thread that collects them.
    """

    pool = None

    def __init__(self, kernel: Kernel, model: Workers, kv: KVCache, *, ahead: bool = False) -> None:
        self.kernel = kernel
        self.model = model
        self.kv = kv
        self.depth = model.depth + ahead
        self.feeds = ahead and model.depth == 1
        self._before: Made[LogitScores | None] = Made()
        self._ask(Allocate(kv.total, kv.block_size, kv.host.total if kv.host is not None else 0))

    @property
    def alive(self) -> bool:
        return self.model.lost is None

    def run(self, step: Step) -> Future:
        """Resolves to the step's LogitScores. Raises LightworkError once a worker has been lost."""
        rows, first = build_rows(step, self.kv)
        future = self.kernel.future("forward")
        before, made = self._before, Made[LogitScores | None]()

        def send(before: Made[LogitScores | None] | None = None) -> None:
            chosen = before.result() if before is not None else None
            fed = {i: chosen.next_token(j) if chosen is not None else 0 for i, j in step.fed}
            rows.tokens[fed_rows(rows, step)] = [*fed.values()]

            def scores(parts: list[Any]) -> LogitScores:
                return LogitScores(step, np.concatenate(parts, 1) if len(parts) > 1 else parts[0], first, fed)

            self._send(Forward(rows, step.copies), scores, future, made)

        if step.fed:
            before.add_done_callback(send)
        else:
            send()
        self._before = made
        return future

    async def embed(self, texts: Sequence[Text]) -> Sequence[Vector]:
        """By the last rank, which pools them; all stages have parts of them meanwhile, and steps between."""
        passes = Passes.of(texts, self.kv.block_size, embedding.PART)
        under_way: deque[Future] = deque()
        for i, rows in enumerate(passes.parts):
            if len(under_way) == self.model.depth:
                await under_way.popleft()
            last = i + 1 == len(passes.parts)
            blocks, counts = passes.num_blocks * (i == 0), passes.counts if last else ()
            command = Embed(rows, blocks, counts, passes.pooling)
            under_way.append(self._ask(command, lambda parts: parts[0]))
        for part in under_way:
            vectors: Sequence[Vector] = await part
        return vectors

    def pull(self, pool: Any, src: Sequence[int], dst: Sequence[int], num_tokens: int) -> Future:
        raise SpecError(
            "workers have no engine beside them", expected="one engine", fix="leave the router out"
        )

    def swap_out(self, runs: Sequence[Run]) -> Future:
        """In its turn among the steps."""
        return self._ask(Swap(runs, out=True))

    def swap_in(self, runs: Sequence[Run]) -> Future:
        return self._ask(Swap(runs, out=False))

    def _ask(self, command: Command, then: Callable[[list[Any]], object] = len) -> Future:
        """Resolves to what `then` makes of the answer, on the thread that collects answers."""
        future = self.kernel.future(type(command).__name__.lower())
        self._send(command, then, future)
        return future

    def _send(
        self,
        command: Command,
        then: Callable[[list[Any]], T],
        future: Future,
        made: Made[T | None] | None = None,
    ) -> None:
        """made: is told first, on the thread that collects answers; None if there is no answer."""

        def answer(parts: list[Any], error: Exception | None) -> None:
            value: T | None = None
            if error is None:
                try:
                    value = then(parts)
                except Exception as failed:
                    error = failed
            if made is not None:
                made.set_result(value)
            self.kernel.post(future.end, value, error)

        try:
            self.model.ask(command, answer)
        except LightworkError as error:
            answer([], error)
