"""An engine in a process of its own, as its fleet sees it: what `Engine` offers, by messages.

The process (`member`) runs an ordinary `Engine`; here is a mirror of its sequences, so that callers, routers
and the trace know no difference. Messages are lists of (name, arguments...): what happened in one turn of the
other's kernel. When the process is lost the fleet is handed its sequences, which are then computed again
elsewhere: sampling is a pure function of the text so far, so the text is the same. Another process is started
meanwhile; what is asked of the engine before that is ready waits here. A process that hangs is killed, and
so lost; not while it still starts, which may take as long as it likes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from lightwork.decode.sampling import Pick
from lightwork.errors import LightworkError
from lightwork.runtime.child import Child, LostError
from lightwork.runtime.futures import Future
from lightwork.runtime.heartbeat import Heartbeat
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.line import Line, Link
from lightwork.runtime.trace import Span
from lightwork.serve.embedding import Text, Vector
from lightwork.serve.engine import Gauges
from lightwork.serve.messages import Figures, Ready
from lightwork.serve.notes import Notes
from lightwork.serve.sequence import FinishReason, Request, Sink, begin, check_request
from lightwork.serve.sequence import Sequence as Seq

MOST_RESTARTS, WITHIN_S = 3, 3600.0
"""So often an engine is started again in such a time; one that is lost once more stays lost."""
BACKOFF_S = 0.25
"""Before the first of them; four times as long before each further one."""
log = logging.getLogger(__name__)


class RemoteEngine:
    """start: what makes the process, on any thread. child: the first one, which is `ready`. number: among the
    members. ids: of sequences, unique in the fleet.

    serving: whether there is a process that serves. returning: if not, whether there will be. memory: where
    its keys and values are. lost(sequences, served): told that the process has ended, which served them or
    was still starting; returns those that nobody takes. returned(): told that another one serves.
    """

    def __init__(
        self,
        kernel: Kernel,
        start: Callable[[], Child],
        child: Child,
        ready: Ready,
        *,
        number: int,
        ids: Iterator[int],
        link: Link,
    ) -> None:
        self.kernel = kernel
        self.limits = ready.limits
        self.vocab_size = ready.vocab_size
        self.kv_tokens = ready.kv_tokens
        self.memory = ready.memory
        self.number = number
        self.serving, self.returning = True, False
        self.lost: Callable[[Iterable[Seq], bool], list[Seq]] = lambda seqs, served: [*seqs]
        self.returned: Callable[[], object] = lambda: None
        self._start = start
        self._link = link
        self._starts: list[float] = []
        self._notes = Notes(kernel, f"engine {number}")
        self._ids = ids
        self._began: Callable[[Seq], bool] | None = None
        self._left: Callable[[Seq], None] = lambda seq: None
        self._seqs: dict[int, Seq] = {}
        self._lent: dict[int, Sequence[int]] = {}
        self._pulling: dict[int, RemoteEngine] = {}
        self._readers: dict[int, RemoteEngine] = {}
        self._texts: dict[int, tuple[Text, Future]] = {}
        self._text_ids = count()
        self._told = Gauges(0, 0, 0.0)
        self._idle: list[Future] = []
        self._closing = False
        self._connect(child)
        self._heartbeat = self._watch_over()

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

    async def embed(self, text: Text) -> Vector:
        """As `Engine.embed`. Raises LostError if the process is lost meanwhile."""
        id, vector = next(self._text_ids), self.kernel.future("a text's vector")
        self._texts[id] = text, vector
        self._send("embed", id, text)
        try:
            made: Vector = await vector
            return made
        finally:
            if self._texts.pop(id, None) is not None:
                self._send("forget", id)

    @property
    def num_unfinished(self) -> int:
        return len(self._seqs)

    @property
    def gauges(self) -> Gauges:
        """As its last step left them; without a process, all wait."""
        waiting = min(self._told.waiting, len(self._seqs)) if self.serving else len(self._seqs)
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

    def meet(self, other: RemoteEngine) -> None:
        """Tell where another one's memory is, which it maps if it can."""
        self._send("meet", other.number, other.memory)

    def close(self) -> None:
        """End the process. From any thread, when no more is asked of it."""
        self._closing = True
        self._line.close()
        if not self.serving:
            self.child.kill()
        self.child.end()

    # -- processes, one after the other

    def _connect(self, child: Child) -> None:
        self.child = child
        self._line = Line(self.kernel, child.pipe, self._take, self._gone, self._link)

    def _watch_over(self) -> Heartbeat:
        return Heartbeat(self.kernel, lambda: self._send("ping"), self._on_hung)

    def _on_hung(self, why: str) -> None:
        log.error("engine %d: its process %s; it is killed", self.number, why)
        self._notes.event("hung", why)
        self._line.close()  # where the process cannot be reached, nothing else ends the pipe
        self.kernel.offload(self.child.process.kill)

    def _gone(self) -> None:
        """On a thread: the process is, or will be."""
        self.kernel.post(self._ended, self.child.end())

    def _ended(self, how: str) -> None:
        if self._closing:
            return
        served, self.serving = self.serving, False
        self._heartbeat.stop()
        now_s = self.kernel.now()
        self._starts = [start_s for start_s in self._starts if now_s - start_s < WITHIN_S]
        self.returning = len(self._starts) < MOST_RESTARTS
        if self.returning:
            pause_s = BACKOFF_S * 4 ** len(self._starts)
            self._starts.append(now_s + pause_s)
            self.kernel.at(now_s + pause_s, lambda: self.kernel.spawn(self._restart(), name="a restart"))
        why = f"engine {self.number}: its process {how}"
        log.error("%s; %s", why, "it is started again" if self.returning else "it stays lost")
        self._notes.event("lost", how, returning=self.returning)
        self._told = Gauges(0, 0, 0.0)
        self._forget_lent()
        if served or not self.returning:
            self._hand_over(why, served)
        self._tell_if_idle()

    def _forget_lent(self) -> None:
        """What it pulled is not needed any more, and who was to read what it lent has to compute it."""
        for id, source in self._pulling.items():
            source._give_up(id)
        self._pulling.clear()
        self._lent.clear()
        for id in [*self._readers]:
            self._on_kv(id, None)

    def _hand_over(self, why: str, served: bool) -> None:
        texts, self._texts = self._texts, {}
        for _, vector in texts.values():
            vector.fail(LostError(why))
        seqs, self._seqs = self._seqs, {}
        for seq in self.lost(seqs.values(), served):
            error = LightworkError(
                why, expected="a process that serves", fix="restart the server; its log says why"
            )
            self._end(seq, "error", error)

    async def _restart(self) -> None:
        try:
            self._connect(await self.kernel.offload(self._start_child))
        except Exception as error:  # whatever it is: who waits here must not wait for ever
            self._ended(f"did not start: {error}")

    def _start_child(self) -> Child:
        """On a thread. A process that comes too late for `close` ends."""
        self.child = child = self._start()
        if self._closing:
            child.kill()
        return child

    def _on_ready(self, ready: Ready) -> None:
        self.limits, self.kv_tokens, self.memory = ready.limits, ready.kv_tokens, ready.memory
        self.serving, self.returning = True, False
        self._heartbeat = self._watch_over()
        self._notes.event("return", f"engine {self.number}")
        self.returned()
        for seq in self._seqs.values():
            self._send("adopt", _bare(seq), None, ())
        for id, (text, _) in self._texts.items():
            self._send("embed", id, text)

    def _on_failed(self, why: str) -> None:
        log.error("engine %d did not start: %s", self.number, why)

    def _on_progress(self, *progress: Any) -> None:
        """Nobody looks."""

    # -- messages

    def _send(self, *message: Any) -> None:
        if self.serving:
            self._line.send(message)

    def _take(self, messages: Sequence[tuple[Any, ...]]) -> None:
        self._heartbeat.heard()
        for name, *arguments in messages:
            getattr(self, f"_on_{name}")(*arguments)
        self._tell_if_idle()

    def _on_pong(self, step: int | None) -> None:
        self._heartbeat.answered(step)

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

    def _on_embedded(self, id: int, vector: Vector | None, error: Exception | None) -> None:
        if id in self._texts:
            self._texts.pop(id)[1].end(vector, error)

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

    def _on_fetch(self, id: int) -> None:
        """It does not see the memory that a sequence's KV is in."""
        source = self._pulling.get(id)
        if source is not None:
            source._readers[id] = self
            if id in source._lent:
                source._send("read", id)
            else:
                source._on_kv(id, None)

    def _on_kv(self, id: int, kv: bytes | None) -> None:
        """What was read of a sequence that it lent; None: it is to be computed again."""
        reader = self._readers.pop(id, None)
        if reader is not None:
            if kv is None:
                del reader._pulling[id]
            reader._send("kv", id, kv)

    def _give_up(self, id: int) -> None:
        self._readers.pop(id, None)
        if self._lent.pop(id, None) is not None:  # not of a process that is no more
            self._send("give_up", id)

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
