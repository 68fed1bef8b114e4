"""One engine of a deployment, in a process of its own: `python -m lightwork.serve.member DESCRIPTOR`.

Descriptor: of the pipe to the process that started it, which says first what to be (`Order`). It ends with
that process. In an actor it is given the pipe.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from secrets import token_hex
from typing import Any, BinaryIO

from lightwork.decode.constraints import grammars
from lightwork.decode.sampling import Pick
from lightwork.errors import LightworkError, UsageError
from lightwork.memory.host import runs
from lightwork.runtime.child import outlive_signals
from lightwork.runtime.clock import WallClock
from lightwork.runtime.futures import Task
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.line import Line
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.embedding import Text
from lightwork.serve.messages import Figures, Memory, Order, Ready
from lightwork.serve.opening import import_backend, open_one
from lightwork.serve.sequence import FinishReason, Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.workers import Workers


@dataclass(frozen=True, slots=True)
class Lent:
    """KV in another member's memory, of which that member is told when it is not needed any more."""

    member: Hosted
    pool: Any
    table: Sequence[int]

    def lent(self, seq: Seq) -> Sequence[int]:
        return self.table

    def give_up(self, seq: Seq) -> None:
        self.member.say("pulled", seq.id)


class Hosted:
    """The engine here, its mirror there. It is the sink of all its sequences, and observes their spans."""

    def __init__(self, pipe: Connection, order: Order) -> None:
        self._pipe = pipe
        self._order = order
        self._file = os.memfd_create(f"lightwork-kv-{order.number}-{token_hex(16)}")
        self._outbox: list[tuple[Any, ...]] = []
        self._next_ids: deque[int] = deque()
        self._seqs: dict[int, Seq] = {}
        self._lent: dict[int, Seq] = {}
        self._pools: dict[int, Any] = {}
        self._texts: dict[int, Task] = {}
        self._awaited: set[int] = set()
        self._compiling: set[int] = set()
        self.kernel = Kernel(WallClock(order.moment), trace=Trace("real: cpu", keep=0, observers=[self]))
        import_backend(order.plan.on)
        self.engine, model, settings = open_one(
            order.plan,
            self.kernel,
            lambda *progress: pipe.send([("progress", *progress)]),
            memory_bytes=order.memory_bytes,
            shared=self._file,
            name=f"engine {order.number}",
            ids=self._ids(),
        )
        assert not isinstance(model, Workers), "a deployment refuses tp and pp"
        self.model = model
        self.engine.watch(began=self._began if order.hands_over else None, left=self._left)
        self.model.warm_up()
        file = f"/proc/{os.getpid()}/fd/{self._file}"
        ready = Ready(
            limits=replace(self.engine.limits, models=[*self.model.variants.values()]),
            vocab_size=self.engine.vocab_size,
            kv_tokens=self.engine.kv_tokens,
            memory=Memory(file, os.readlink(file), self.engine.kv.total),
            nbytes=self.model.nbytes,
            variants={**self.model.variants},
            settings=settings,
        )
        pipe.send([("ready", ready)])

    def serve(self) -> None:
        """Until told to stop, or until the other process is gone."""
        self._line = Line(self.kernel, self._pipe, self._take, self.kernel.stop, self._order.link)
        try:
            self.kernel.run(self.engine.run())
        finally:  # also what an engine that broke a law says of its sequences
            self._flush()
            self._line.finish()

    def say(self, *message: Any) -> None:
        """Tell the other process; all of a turn's messages go together."""
        if not self._outbox:
            self.kernel.call_soon(self._flush)
        self._outbox.append(message)

    def _flush(self) -> None:
        messages, self._outbox = self._outbox, []
        self._line.send(messages)

    def _take(self, message: Sequence[Any]) -> None:
        name, *arguments = message
        getattr(self, f"_on_{name}")(*arguments)

    def _ids(self) -> Iterator[int]:
        while True:
            yield self._next_ids.popleft()

    # -- what it is told

    def _on_ping(self) -> None:
        self.say("pong", self.engine.computing)

    def _on_submit(self, ids: Sequence[int], request: Request) -> None:
        self._when_compiled(request, ids, lambda: self._submit(ids, request))

    def _submit(self, ids: Sequence[int], request: Request) -> None:
        self._next_ids.extend(ids)
        try:
            seqs = self.engine.submit(request, self)
        except LightworkError as error:
            self._next_ids.clear()
            for id in ids:
                self.say("finish", id, "error", error, Figures(0, None, 0, 0, 0, 0))
            return
        self._seqs.update((seq.id, seq) for seq in seqs)

    def _when_compiled(self, request: Request, ids: Sequence[int], then: Callable[[], object]) -> None:
        """At once, unless there is a constraint that is new here: it is compiled beside the steps."""
        constraint, known = request.constraint, grammars(self.model.tokenizer, self.engine.vocab_size)
        if constraint is None or constraint in known:
            then()
            return
        self._compiling.update(ids)

        async def compiled() -> None:
            with suppress(LightworkError):  # which the engine will say
                await self.kernel.offload(known.matcher, constraint, background=True)
            cancelled = [id for id in ids if id not in self._compiling]
            self._compiling.difference_update(ids)
            then()
            self._on_cancel(cancelled)

        self.kernel.spawn(compiled(), name=f"constraint of {ids[0]}")

    def _on_cancel(self, ids: Sequence[int]) -> None:
        self._compiling.difference_update(ids)
        for id in self._awaited.intersection(ids):
            self._awaited.remove(id)
            del self._seqs[id]
            self.say("pulled", id)
        self.engine.cancel([self._seqs[id] for id in ids if id in self._seqs])

    def _on_embed(self, id: int, text: Text) -> None:
        self._texts[id] = self.kernel.spawn(self._embed(id, text), name=f"text {id}")

    async def _embed(self, id: int, text: Text) -> None:
        vector, said = None, None
        try:
            vector = await self.engine.embed(text)
        except Exception as error:
            said = error if isinstance(error, UsageError) else _plain(error)
        del self._texts[id]
        self.say("embedded", id, vector, said)

    def _on_forget(self, id: int) -> None:
        if id in self._texts:
            self._texts.pop(id).cancel()

    def _on_adopt(self, seq: Seq, number: int | None, table: Sequence[int]) -> None:
        self._when_compiled(seq.request, [seq.id], lambda: self._adopt(seq, number, table))

    def _adopt(self, seq: Seq, number: int | None, table: Sequence[int]) -> None:
        seq.sink = self
        self._seqs[seq.id] = seq
        if number is None:
            self.engine.adopt(seq)
        elif number in self._pools:
            self.engine.adopt(seq, Lent(self, self._pools[number], table))
        else:
            self._awaited.add(seq.id)
            self.say("fetch", seq.id)

    def _on_kv(self, id: int, kv: bytes | None) -> None:
        """It came by the link, and waits in a pool of its own; None: it is lost."""
        if id not in self._awaited:
            return
        self._awaited.remove(id)
        seq = self._seqs[id]
        if kv is None:
            seq.computed = 0
            self.engine.adopt(seq)
            return
        num = self._num_blocks(seq)
        with _copy() as file:
            file.write(kv)
            file.flush()
            pool = self._map(file.fileno(), num)
        self.engine.adopt(seq, Lent(self, pool, range(num)))

    def _on_read(self, id: int) -> None:
        if id in self._lent:
            self.kernel.spawn(self._tell_kv(self._lent[id]), name=f"read {id}")

    async def _tell_kv(self, seq: Seq) -> None:
        table = [*self.engine.lent(seq)][: self._num_blocks(seq)]
        self.say("kv", seq.id, await self.kernel.offload(self._bytes_of, table, background=True))

    def _bytes_of(self, table: Sequence[int]) -> bytes:
        with _copy() as file:
            pool = self._map(file.fileno(), len(table))
            pool.pull(self.engine.pool, runs(table, range(len(table))))
            return file.read()

    def _num_blocks(self, seq: Seq) -> int:
        """Of its KV."""
        return -(-seq.computed // self.engine.kv.block_size)

    def _map(self, file: int, num_blocks: int) -> Any:
        return self.model.new_kv(num_blocks, self.engine.kv.block_size, shared=file)

    def _on_take_back(self, id: int) -> None:
        self.engine.take_back(self._lent.pop(id))

    def _on_give_up(self, id: int) -> None:
        seq = self._lent.pop(id)
        self._seqs.pop(id, None)
        seq.finished = "cancelled"  # here: whoever remembers it may forget it
        self.engine.give_up(seq)

    def _on_meet(self, number: int, memory: Memory) -> None:
        """Map its memory, now: it is there as long as somebody does. That of a process before it stays with
        the sequences that are still to be pulled from there."""
        self._pools.pop(number, None)
        with suppress(OSError):
            if self._order.shares and os.readlink(memory.path) == memory.name:
                with open(memory.path, "r+b") as file:
                    self._pools[number] = self._map(file.fileno(), memory.num_blocks)

    # -- what happens here

    def _began(self, seq: Seq) -> None:
        self.engine.lend(seq)
        self._lent[seq.id] = seq
        self.say("began", seq.id, tuple(self.engine.lent(seq)), Figures.of(seq))

    def _left(self, seq: Seq) -> None:
        self._seqs.pop(seq.id, None)

    def prompt(self, seq: Seq, picks: Sequence[Pick]) -> None:
        self.say("prompt", seq.id, picks)

    def tokens(self, seq: Seq, picks: Sequence[Pick]) -> None:
        self.say("tokens", seq.id, picks)

    def finish(self, seq: Seq, reason: FinishReason, error: Exception | None) -> None:
        self.say("finish", seq.id, reason, None if error is None else _plain(error), Figures.of(seq))

    def on(self, span: Span) -> None:
        """When a request came and why it ended is told by who knows."""
        if span.kind not in ("arrive", "finish"):
            self.say("span", span)


def _plain(error: Exception) -> LightworkError:
    """What can be sent of any error."""
    return LightworkError(f"{type(error).__name__}: {error}")


def _copy() -> BinaryIO:
    """A file in memory, for what is on its way."""
    return os.fdopen(os.memfd_create("lightwork-kv-copy"), "w+b")


def run(pipe: Connection) -> None:
    """Be what the other end of the pipe orders, until it is gone."""
    order: Order = pipe.recv()
    if order.cores:
        os.sched_setaffinity(0, order.cores)
    try:
        hosted = Hosted(pipe, order)
    except Exception as error:
        pipe.send([("failed", f"{type(error).__name__}: {error}")])
        raise
    hosted.serve()


def main() -> None:
    outlive_signals()
    run(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
