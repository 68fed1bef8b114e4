"""Several engines behind a router, on one kernel: what callers see is one engine.

A sequence that goes on elsewhere leaves its engine with its first token and queues at the next, its keys and
values still where they were computed. When the next engine admits it, it pulls them, and the first frees its
blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from lightwork.errors import InvariantError
from lightwork.runtime.kernel import Kernel
from lightwork.serve.engine import Engine
from lightwork.serve.routers import Member, Router
from lightwork.serve.sequence import Request, Sink
from lightwork.serve.sequence import Sequence as Seq


class Fleet:
    """engines: in the order of the router's seats, all on one kernel."""

    def __init__(self, engines: Sequence[Engine], router: Router[Any]) -> None:
        self.engines = list(engines)
        self.router = router
        self.members = [Member() for _ in engines]
        self._state = router.init()
        self._at: dict[int, int] = {}
        for i, engine in enumerate(self.engines):
            engine.began = partial(self._began, i)
            engine.left = self._left

    @property
    def kernel(self) -> Kernel:
        return self.engines[0].kernel

    @property
    def vocab_size(self) -> int:
        return self.engines[0].vocab_size

    def submit(self, request: Request, sink: Sink | None = None) -> list[Seq]:
        """Queue a request at the engine that the router chooses. Raises what that engine's submit raises."""
        asked = Seq(-1, request, request.sampling, sink, 0.0, [*request.prompt], len(request.prompt))
        chosen = self._checked(self.router.place(self._state, asked, self.members))
        seqs = self.engines[chosen].submit(request, sink)
        for seq in seqs:
            self._at[seq.id] = chosen
            self._count(seq, chosen, 1)
        return seqs

    def cancel(self, seqs: Iterable[Seq]) -> None:
        for seq in seqs:
            if seq.finished is None:
                self.engines[self._at[seq.id]].cancel([seq])

    @property
    def num_unfinished(self) -> int:
        return sum(engine.num_unfinished for engine in self.engines)

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

    def _began(self, at: int, seq: Seq) -> None:
        """A sequence has its first token."""
        chosen = self._checked(self.router.next(self._state, seq, at, self.members))
        if chosen == at:
            return
        self._count(seq, at, -1)
        self._count(seq, chosen, 1)
        self._at[seq.id] = chosen
        self.engines[at].hand_over(seq, self.engines[chosen])

    def _left(self, seq: Seq) -> None:
        at = self._at.pop(seq.id, None)
        if at is not None:
            self._count(seq, at, -1)

    def _count(self, seq: Seq, at: int, sign: int) -> None:
        self.members[at].requests += sign
        self.members[at].tokens += sign * (seq.prompt_len + seq.request.max_tokens)

    def _checked(self, chosen: int) -> int:
        if not 0 <= chosen < len(self.engines):
            raise InvariantError(
                f"{self.router!r} chose engine {chosen}", expected=f"0 to {len(self.engines) - 1}"
            )
        return chosen
