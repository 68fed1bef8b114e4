"""An engine in a process of its own, as its fleet sees it: what `Engine` offers, by messages.

The process (`member`) runs an ordinary `Engine`; here is a mirror of its sequences, so that callers, routers
and the trace know no difference. Messages are lists of (name, arguments...): what happened in one turn of the
other's kernel. When the process is lost the fleet is handed its sequences, which are then computed again
elsewhere: sampling is a pure function of the text so far, so the text is the same.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from subprocess import Popen, TimeoutExpired
from typing import Any, NamedTuple

from lightwork.decode.sampling import Pick
from lightwork.errors import LightworkError
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Span
from lightwork.serve.engine import Gauges
from lightwork.serve.notes import Notes
from lightwork.serve.plan import Plan, Setting
from lightwork.serve.sequence import FinishReason, Limits, Request, Sink, begin, check_request
from lightwork.serve.sequence import Sequence as Seq

STOP_S = 5.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a member is to be. files: descriptors of all members' memory for keys and values, its own at
    `number`.

    origin_s: when the clock of the others began. memory_bytes: free for it.
    """

    plan: Plan
    number: int
    files: Sequence[int]
    cores: Sequence[int]
    memory_bytes: int
    origin_s: float
    hands_over: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What a member has become. nbytes: of its weights. variants: of its model."""

    limits: Limits
    vocab_size: int
    kv_tokens: int
    num_blocks: int
    nbytes: int
    variants: Mapping[str, str]
    settings: Sequence[Setting]


class Figures(NamedTuple):
    """What a sequence was when it ended or went on elsewhere."""

    computed: int
    started_s: float | None
    cached: int
    num_preempted: int
    drafted: int
    accepted: int

    @classmethod
    def of(cls, seq: Seq) -> Figures:
        return cls(*(getattr(seq, name) for name in cls._fields))

    def write(self, seq: Seq) -> None:
        for name, value in zip(self._fields, self, strict=True):
            setattr(seq, name, value)


class RemoteEngine:
    """number: among the members. ids: of sequences, unique in the fleet. lost: told that the process has
    ended, with its sequences; returns those that nobody takes."""

    def __init__(
        self,
        kernel: Kernel,
        process: Popen[bytes],
        pipe: Connection,
        ready: Ready,
        *,
        number: int,
        ids: Iterator[int],
    ) -> None:
        self.kernel = kernel
        self.limits = ready.limits
        self.vocab_size = ready.vocab_size
        self.kv_tokens = ready.kv_tokens
        self.number = number
        self.process = process
        self.lost: Callable[[Iterable[Seq]], list[Seq]] = list
        self._notes = Notes(kernel, f"engine {number}")
        self._pipe = pipe
        self._ids = ids
        self._began: Callable[[Seq], bool] | None = None
        self._left: Callable[[Seq], None] = lambda seq: None
        self._seqs: dict[int, Seq] = {}
        self._lent: dict[int, Sequence[int]] = {}
        self._pulling: dict[int, RemoteEngine] = {}
        self._told = Gauges(0, 0, 0.0)
        self._idle: list[Future] = []
        self._closing = False
        threading.Thread(target=self._read, name=f"lightwork-engine-{number}", daemon=True).start()

    def watch(self, *, began: Callable[[Seq], bool] | None, left: Callable[[Seq], None]) -> None:
        """Tell when a sequence has its first token (and ask whether it goes on elsewhere), and when it is
        gone."""
        self._began, self._left = began, left

    # -- what an engine offers

    def submit(self, request: Request, sink: Sink | None = None) -> list[Seq]:
        """As `Engine.submit`."""
        waiting = max(0, len(self._seqs) - self._told.running)
        check_request(request, self.limits, self.kv_tokens, waiting)
        seqs = begin(request, sink, self._ids, self.kernel.now())
        self._seqs.update((seq.id, seq) for seq in seqs)
        self._notes.moment(
            "arrive", seqs[0], prompt=len(request.prompt), max_tokens=request.max_tokens, n=request.n
        )
        self._send("submit", [seq.id for seq in seqs], request)
        return seqs

    def cancel(self, seqs: Iterable[Seq]) -> None:
        """As `Engine.cancel`; the process frees the blocks when it hears of it."""
        for seq in seqs:
            if seq.finished is None:
                self._send("cancel", [seq.id])
                self._end(seq, "cancelled")

    @property
    def num_unfinished(self) -> int:
        return len(self._seqs)

    @property
    def gauges(self) -> Gauges:
        """As its last step left them."""
        waiting = min(self._told.waiting, len(self._seqs))
        return Gauges(len(self._seqs) - waiting, waiting, self._told.kv_usage)

    def unfinished(self) -> list[Seq]:
        return [*self._seqs.values()]

    async def drained(self) -> None:
        while self._seqs:
            self._idle.append(self.kernel.future(f"engine {self.number} to drain"))
            await self._idle[-1]

    async def run(self) -> None:
        """It serves by itself: nothing to do, for ever."""
        await self.kernel.future(f"engine {self.number}")

    def lend(self, seq: Seq) -> None:
        """Let a sequence go on elsewhere; its KV stays in the process until it has been pulled."""
        del self._seqs[seq.id]
        self._tell_if_idle()

    def adopt(self, seq: Seq, source: RemoteEngine | None = None) -> None:
        """Go on with a sequence of another engine; without a source its KV is computed again."""
        self._seqs[seq.id] = seq
        if source is None:
            seq.computed = 0
            self._send("adopt", _bare(seq), None, ())
        else:
            self._pulling[seq.id] = source
            self._send("adopt", _bare(seq), source.number, source._lent[seq.id])

    def close(self) -> None:
        """End the process. From any thread, when no more is asked of it."""
        self._closing = True
        self._send("stop")
        try:
            self.process.wait(STOP_S)
        except TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._pipe.close()

    def meet(self, num_blocks: Sequence[int]) -> None:
        """Tell how many blocks each member has, so that it can map their memory."""
        self._send("meet", num_blocks)

    # -- messages

    def _send(self, *message: Any) -> None:
        with suppress(OSError):  # a process that is gone is told of by its reader
            self._pipe.send(message)

    def _read(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self.kernel.post(self._take, self._pipe.recv())
        self.kernel.post(self._ended)

    def _take(self, messages: Sequence[tuple[Any, ...]]) -> None:
        for name, *arguments in messages:
            getattr(self, f"_on_{name}")(*arguments)
        self._tell_if_idle()

    def _on_prompt(self, id: int, picks: Sequence[Pick]) -> None:
        seq = self._seqs.get(id)
        if seq is not None and seq.sink is not None:
            seq.prompt_told += len(picks)
            seq.sink.prompt(seq, picks)

    def _on_tokens(self, id: int, picks: Sequence[Pick]) -> None:
        seq = self._seqs.get(id)
        if seq is None:
            return
        seq.tokens.extend(pick.token for pick in picks)
        if seq.first_token_s is None:
            seq.first_token_s = self.kernel.now()
        try:
            stands = seq.sink.tokens(seq, picks) if seq.sink is not None else None
        except Exception as error:  # a caller that cannot take its tokens ends its own sequence only
            self._send("cancel", [id])
            self._end(seq, "error", error)
            return
        if stands is not None:
            del seq.tokens[len(seq.tokens) - len(picks) + stands :]
            self._send("cancel", [id])
            self._end(seq, "stop")

    def _on_finish(self, id: int, reason: FinishReason, error: Exception | None, figures: Figures) -> None:
        seq = self._seqs.get(id)
        if seq is not None:
            figures.write(seq)
            self._end(seq, reason, error)

    def _on_began(self, id: int, table: Sequence[int], figures: Figures) -> None:
        """It has lent the sequence and waits for word."""
        seq = self._seqs.get(id)
        self._lent[id] = table
        if seq is None:
            self._give_up(id)
            return
        figures.write(seq)
        if self._began is None or not self._began(seq):
            del self._lent[id]
            self._send("take_back", id)

    def _on_pulled(self, id: int) -> None:
        """It has the sequence's KV, or does not want it any more."""
        source = self._pulling.pop(id, None)
        if source is not None:
            source._give_up(id)

    def _on_span(self, span: Span) -> None:
        seq = self._seqs.get(int(span.name)) if span.kind == "admit" else None
        if seq is not None and seq.started_s is None:
            seq.started_s = span.start_s
        if span.kind == "step" and span.args is not None:
            self._told = Gauges(span.args["running"], span.args["waiting"], span.args["kv_usage"])
        if self.kernel.trace is not None:
            self.kernel.trace.add(span)

    def _give_up(self, id: int) -> None:
        del self._lent[id]
        self._send("give_up", id)

    def _ended(self) -> None:
        """The process is gone."""
        if self._closing:
            return
        why = f"the process of engine {self.number} ended with exit code {self.process.wait()}"
        log.error("%s; %d sequences go on elsewhere", why, len(self._seqs))
        for id, source in self._pulling.items():
            source._give_up(id)
        self._pulling.clear()
        seqs, self._seqs = self._seqs, {}
        for seq in self.lost(seqs.values()):
            self._end(
                seq, "error", LightworkError(why, expected="a process that serves", fix="restart the server")
            )
        self._told = Gauges(0, 0, 0.0)
        self._tell_if_idle()

    def _end(self, seq: Seq, reason: FinishReason, error: Exception | None = None) -> None:
        self._seqs.pop(seq.id, None)
        seq.finished = reason
        seq.finished_s = self.kernel.now()
        self._notes.moment("finish", seq, reason=reason, output=seq.num_output)
        if seq.sink is not None:
            seq.sink.finish(seq, reason, error)
        self._left(seq)
        self._tell_if_idle()

    def _tell_if_idle(self) -> None:
        if not self._seqs:
            idle, self._idle = self._idle, []
            for future in idle:
                future.set(None)


def _bare(seq: Seq) -> Seq:
    """A sequence without what only this process knows."""
    return replace(seq, sink=None, siblings=[], source=None, busy=0)
