"""Texts that an engine embeds beside its steps: one vector of each, pooled from its hidden states.

They have keys and values of their own, which are gone with the vector. Short ones of one model are computed
together, long ones in parts, and a step waits for a part at most.

N scored rows  d hidden
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import UsageError
from lightwork.kernels.rows import Rows
from lightwork.models.pooling import Pooling
from lightwork.runtime.futures import CancelledError, Future, Task
from lightwork.runtime.kernel import Kernel
from lightwork.serve.notes import Notes

Vector = NDArray[np.float32]
AT_ONCE = 512
"""Tokens of texts that are computed together."""
PART = 128
"""Rows of a part on a CPU, as of its steps: more of them only keep those waiting who generate."""


@dataclass(frozen=True, slots=True)
class Text:
    """model: as `Request.model`. pooling: what is made of its hidden states."""

    tokens: Sequence[int]
    model: str = ""
    pooling: Pooling = field(default_factory=Pooling)


class Embeds(Protocol):
    """What computes vectors: a runner, which does so beside its steps."""

    def embed(self, texts: Sequence[Text]) -> Awaitable[Sequence[Vector]]: ...


@runtime_checkable
class ShowsStates(Protocol):
    """A model that shows the hidden states of the scored rows behind its last norm, [N, d]."""

    def states(self, rows: Rows, kv: Any) -> NDArray[np.float32]: ...
    def new_kv(self, num_blocks: int, block_size: int) -> Any: ...


@dataclass(frozen=True, slots=True)
class Passes:
    """What the vectors of texts of one model take.

    parts: their rows, to be computed one after the other. num_blocks: of their keys and values. counts: how
    many hidden states each text is pooled from.
    """

    parts: Sequence[Rows]
    num_blocks: int
    counts: Sequence[int]
    pooling: Pooling

    @classmethod
    def of(cls, texts: Sequence[Text], block_size: int, part: int) -> Passes:
        """part: rows of one."""
        pooling, model = texts[0].pooling, texts[0].model
        rows = Rows.of_texts([np.array(text.tokens, np.int64) for text in texts], block_size)
        counts = [len(text.tokens) for text in texts]
        if model:
            rows = replace(rows, models=(model,) * len(texts))
        if not pooling.reads_all:
            rows, counts = replace(rows, scored=np.cumsum(counts) - 1), [1] * len(texts)
        num_blocks = int((rows.tables >= 0).sum())
        return cls([*rows.parts(part)], num_blocks, counts, pooling)


def pooled(states_Nd: Sequence[NDArray[np.float32]], counts: Sequence[int], pooling: Pooling) -> list[Vector]:
    """The vector of each text from the states of all parts."""
    ends = [*accumulate(counts)]
    return [pooling.vector(some) for some in np.split(np.concatenate(states_Nd), ends[:-1])]


async def embed_here(
    model: ShowsStates,
    texts: Sequence[Text],
    block_size: int,
    start: Callable[..., Future],
    part: int,
) -> list[Vector]:
    """Vectors by a model of this process. start(fn, *args): runs fn beside the kernel's thread. part: see
    `Passes.of`."""
    passes = Passes.of(texts, block_size, part)
    kv = await start(model.new_kv, passes.num_blocks, block_size)
    states = [await start(model.states, rows, kv) for rows in passes.parts]
    return pooled(states, passes.counts, passes.pooling)


def refused(why: str) -> UsageError:
    """No vectors from here."""
    return UsageError(
        f"this server's plan gives no hidden states: {why}",
        expected="a decoder whose weights are always there",
        fix="serve the model for embeddings apart: lightwork serve MODEL",
    )


class Embedding:
    """What one engine was asked to embed, in the order in which it was. In the trace, "embed" is what was
    computed together."""

    def __init__(self, kernel: Kernel, runner: Embeds, notes: Notes) -> None:
        self._kernel = kernel
        self._runner = runner
        self._notes = notes
        self._asked: deque[tuple[Text, Future]] = deque()
        self._works = False

    async def embed(self, text: Text) -> Vector:
        """Its vector. Cancelled, it gives up its turn. Raises UsageError where there are no hidden states,
        and what the runner raises."""
        vector = self._kernel.future("a text's vector")
        self._asked.append((text, vector))
        if not self._works:
            self._works = True
            self._kernel.spawn(self._work(), name="embedding")
        try:
            made: Vector = await vector
            return made
        except CancelledError:
            vector.cancel()
            raise

    async def _work(self) -> None:
        while batch := [*self._together()]:
            await self._embed(batch)
        self._works = False

    def _together(self) -> Iterator[tuple[Text, Future]]:
        """The next texts of one model that are still wanted, as many as are computed at once."""
        room, first = AT_ONCE, None
        while self._asked:
            text, vector = self._asked[0]
            if not vector.done:
                room -= len(text.tokens)
                if first is not None and (room < 0 or (text.model, text.pooling) != first):
                    return
                first = text.model, text.pooling
                yield text, vector
            self._asked.popleft()

    async def _embed(self, batch: Sequence[tuple[Text, Future]]) -> None:
        begin_s, texts = self._kernel.now(), [text for text, _ in batch]
        vectors = [vector for _, vector in batch]
        made = self._kernel.spawn(self._made(texts), name="vectors")

        def left(vector: Future) -> None:
            if all(each.done for each in vectors):
                made.cancel()

        for vector in vectors:
            vector.add_callback(left)
        try:
            found = [*zip(vectors, await made, strict=True)]
        except (Exception, CancelledError) as error:
            for vector in vectors:
                if not vector.done:
                    vector.fail(error)
            return
        for vector, value in found:
            vector.set(value)
        num_tokens = sum(len(text.tokens) for text in texts)
        self._notes.lasting("embed", "texts", begin_s, texts=len(texts), tokens=num_tokens)

    async def _made(self, texts: Sequence[Text]) -> Sequence[Vector]:
        return await self._runner.embed(texts)


class Embedder(Protocol):
    """What takes texts: an engine, or several."""

    def embed(self, text: Text) -> Coroutine[Any, Any, Vector]: ...


class Embedded:
    """Texts that a caller in asyncio waits for. answer: their vectors, there. done: set here, however it
    ends."""

    def __init__(self, kernel: Kernel, loop: asyncio.AbstractEventLoop, texts: Sequence[Text]) -> None:
        self._kernel = kernel
        self._loop = loop
        self._texts = texts
        self._task: Task | None = None
        self.answer: asyncio.Future[list[Vector]] = loop.create_future()
        self.done = kernel.future("texts to be embedded")

    def start(self, embedder: Embedder) -> None:
        """On the kernel's thread."""
        self._task = self._kernel.spawn(self._embed(embedder), name="texts")
        self._task.add_callback(self._tell)

    async def _embed(self, embedder: Embedder) -> list[Vector]:
        return await self._kernel.gather(
            *[self._kernel.spawn(embedder.embed(text), name="text") for text in self._texts]
        )

    def _tell(self, task: Future) -> None:
        self.done.set()
        if isinstance(task.error, Exception):
            self.give_up(task.error)
        elif task.error is None:
            self._answer(self.answer.set_result, task.value)

    def give_up(self, error: Exception) -> None:
        """Tell the caller, who hears of nothing else any more. From the kernel's thread."""
        self._answer(self.answer.set_exception, error)

    def cancel(self) -> None:
        """Compute no more; no-op if all is done."""
        if self._task is not None:
            self._task.cancel()
        elif not self.done.done:
            self.done.set()

    def _answer(self, end: Callable[[Any], object], value: Any) -> None:
        def tell() -> None:
            if not self.answer.done():
                end(value)

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(tell)
