"""Several engines behind a router, on one kernel: what callers see is one engine.

A sequence that goes on elsewhere leaves its engine with its first token and queues at the next, its keys and
values still where they were computed. When the next engine admits it, it pulls them, and the first frees its
blocks. The engines are in this process, real or simulated, or each has its own (`remote`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from lightwork.errors import InvariantError, LightworkError
from lightwork.runtime.child import LostError
from lightwork.runtime.kernel import Kernel
from lightwork.serve.embedding import Text, Vector
from lightwork.serve.engine import Engine, Gauges
from lightwork.serve.remote import RemoteEngine
from lightwork.serve.routers import Member, Router
from lightwork.serve.sequence import Limits, Request, Sink
from lightwork.serve.sequence import Sequence as Seq

MOST_LOSSES = 2
"""Engines that a sequence may lose before it ends with an error."""


class Fleet:
    """engines: in the order of the router's seats, all of one sort."""

    def __init__(self, engines: Sequence[Engine] | Sequence[RemoteEngine], router: Router[Any]) -> None:
        self.engines: list[Any] = list(engines)
        self.router = router
        self.members = [Member() for _ in engines]
        self._state = router.init()
        self._at: dict[int, int] = {}
        self._losses: Counter[int] = Counter()
        for i, (engine, seat) in enumerate(zip(self.engines, router.seats(), strict=True)):
            engine.watch(began=partial(self._began, i) if seat.hands_over else None, left=self._left)
            if isinstance(engine, RemoteEngine):
                engine.lost = partial(self._lost, i)
                engine.returned = partial(self._returned, i)

    @property
    def kernel(self) -> Kernel:
        kernel: Kernel = self.engines[0].kernel
        return kernel

    @property
    def vocab_size(self) -> int:
        size: int = self.engines[0].vocab_size
        return size

    @property
    def limits(self) -> Limits:
        limits: Limits = self.engines[0].limits
        return limits

    @property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values fit into any one of them."""
        tokens: int = min(engine.kv_tokens for engine in self.engines)
        return tokens

    @property
    def gauges(self) -> Gauges:
        """Of all engines; the share of KV blocks is the mean."""
        all_of_them = [engine.gauges for engine in self.engines]
        running, waiting = (sum(g[i] for g in all_of_them) for i in (0, 1))
        return Gauges(running, waiting, sum(g.kv_usage for g in all_of_them) / len(all_of_them))

    @property
    def alive(self) -> bool:
        """Whether there is anybody to serve."""
        return any(member.alive for member in self.members)

    def submit(self, request: Request, sink: Sink | None = None) -> list[Seq]:
        """Queue a request at the engine that the router chooses. Raises what that engine's submit raises, and
        LightworkError if no engine is left."""
        asked = Seq(-1, request, request.sampling, sink, 0.0, [*request.prompt], len(request.prompt))
        chosen = self._place(asked)
        seqs: list[Seq] = self.engines[chosen].submit(request, sink)
        for seq in seqs:
            self._at[seq.id] = chosen
            self._count(seq, chosen, 1)
        return seqs

    async def embed(self, text: Text) -> Vector:
        """By the engine that the router would give the text as a prompt; by another if that is lost.

        Raises what `Engine.embed` does, and LightworkError if no engine is left, or this text has lost three.
        """
        request = Request(prompt=tuple(text.tokens), max_tokens=1, model=text.model)
        seq = Seq(-1, request, request.sampling, None, 0.0, [*text.tokens], len(text.tokens))
        losses = 0
        while True:
            chosen = self._place(seq)
            self._count(seq, chosen, 1)
            try:
                vector: Vector = await self.engines[chosen].embed(text)
                return vector
            except LostError:
                losses += 1
                if losses > MOST_LOSSES:
                    raise
            finally:
                self._count(seq, chosen, -1)

    def cancel(self, seqs: Iterable[Seq]) -> None:
        for seq in seqs:
            if seq.finished is None:
                self.engines[self._at[seq.id]].cancel([seq])

    def close(self) -> None:
        """End what engines of this process started; other processes end with what `open_engine` returned."""
        for engine in self.engines:
            if isinstance(engine, Engine):
                engine.close()

    @property
    def num_unfinished(self) -> int:
        return sum(engine.num_unfinished for engine in self.engines)

    def unfinished(self) -> list[Seq]:
        return [seq for engine in self.engines for seq in engine.unfinished()]

    async def drained(self) -> None:
        while self.num_unfinished:
            for engine in self.engines:
                await engine.drained()

    async def run(self) -> None:
        """Serve for ever. An engine that breaks a law ends them all."""
        running = [
            self.kernel.spawn(engine.run(), name=f"engine {i}") for i, engine in enumerate(self.engines)
        ]
        try:
            for task in running:
                await task
        finally:
            for task in running:
                task.cancel()

    def _began(self, at: int, seq: Seq) -> bool:
        """A sequence has its first token. Returns whether it goes on elsewhere."""
        chosen = self._checked(self.router.next(self._state, seq, at, self.members))
        if chosen == at:
            return False
        self._count(seq, at, -1)
        self._count(seq, chosen, 1)
        self._at[seq.id] = chosen
        source = self.engines[at]
        source.lend(seq)
        self.engines[chosen].adopt(seq, source)
        return True

    def _left(self, seq: Seq) -> None:
        at = self._at.pop(seq.id, None)
        self._losses.pop(seq.id, None)
        if at is not None:
            self._count(seq, at, -1)

    def _lost(self, at: int, seqs: Iterable[Seq], served: bool) -> list[Seq]:
        """An engine's process has ended: its sequences are computed again elsewhere, or there when another
        one is ready; to the same text.

        Returns those that are not: nobody is left, or they have lost three engines and may be the reason.
        """
        self._call_roll()
        stranded = []
        for seq in seqs:
            self._losses[seq.id] += served
            if not self.alive or self._losses[seq.id] > MOST_LOSSES:
                stranded.append(seq)
                continue
            chosen = self._place(seq)
            self._count(seq, at, -1)
            self._count(seq, chosen, 1)
            self._at[seq.id] = chosen
            self.engines[chosen].adopt(seq)
        return stranded

    def _returned(self, at: int) -> None:
        """An engine's new process is there, with memory of its own."""
        for i, engine in enumerate(self.engines):
            if i != at and engine.serving:
                engine.meet(self.engines[at])
                self.engines[at].meet(engine)
        self._call_roll()

    def _call_roll(self) -> None:
        """Work goes to engines that serve; while none does, to those that will again, and waits there."""
        serving = any(engine.serving for engine in self.engines)
        for member, engine in zip(self.members, self.engines, strict=True):
            member.alive = engine.serving if serving else engine.returning

    def _place(self, seq: Seq) -> int:
        if not self.alive:
            raise LightworkError(
                "no engine is left",
                expected="a process that serves",
                fix="restart the server; its log says why",
            )
        return self._checked(self.router.place(self._state, seq, self.members))

    def _count(self, seq: Seq, at: int, sign: int) -> None:
        self.members[at].requests += sign
        self.members[at].tokens += sign * (seq.prompt_len + seq.request.max_tokens)

    def _checked(self, chosen: int) -> int:
        if not 0 <= chosen < len(self.engines) or not self.members[chosen].alive:
            raise InvariantError(
                f"{self.router!r} chose engine {chosen}",
                expected=f"0 to {len(self.engines) - 1}, one that is alive",
            )
        return chosen
