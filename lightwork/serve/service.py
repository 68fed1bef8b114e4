"""An engine on a thread of its own, for callers that live in asyncio.

The kernel's thread owns the engine and all sequences. Requests go in through `Kernel.post`; what a step
produced comes out in one call to each caller's event loop, however many sequences it was.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Protocol

from lightwork.decode.constraints import grammars
from lightwork.decode.sampling import Pick
from lightwork.errors import LightworkError, NotReadyError, UsageError
from lightwork.models.tokenizer import Tokenizer
from lightwork.runtime.kernel import Kernel
from lightwork.serve.embedding import Embedded, Text, Vector
from lightwork.serve.engine import Engine
from lightwork.serve.fleet import Fleet
from lightwork.serve.sequence import FinishReason, Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.text import TextOutput
from lightwork.serve.training_runner import TrainingRunner

RETRY_AFTER_S = 5
"""What clients are told who come when no requests are taken: by then another server may be there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one continuation took. Times in seconds; queue + prefill + decode is its life in the engine."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    queue_s: float
    prefill_s: float
    decode_s: float
    drafted: int
    accepted: int
    num_preempted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What is new of one continuation (of n).

    The last one has a reason and usage, error if that failed, and the stop string that was found, if any.
    """

    index: int
    text: str = ""
    picks: tuple[Pick, ...] = ()
    prompt_picks: tuple[Pick, ...] = ()
    reason: FinishReason | None = None
    error: Exception | None = None
    usage: Usage | None = None
    stop: str = ""


class Taker(Protocol):
    """Is told of requests that an engine has taken, on the kernel's thread, in the context of who asked."""

    def took(self, seqs: Sequence[Seq], stop: Sequence[str]) -> None: ...
    def close(self) -> None:
        """Nothing more is told."""
        ...


class Stream:
    """The deltas of one request, as an async iterator that ends after every continuation has ended.

    Leaving it early (`aclose`, or being cancelled) cancels the request, which frees its memory.
    """

    def __init__(
        self, service: Service, loop: asyncio.AbstractEventLoop, request: Request, stop: Sequence[str]
    ) -> None:
        self.loop = loop
        self.request = request
        self.accepted: asyncio.Future[None] = loop.create_future()
        self.queue: asyncio.Queue[Delta] = asyncio.Queue()
        self._service = service
        self._context = copy_context()
        self._stop = stop
        self._seqs: list[Seq] = []
        self._texts: list[TextOutput] = []
        self._open = request.n

    def start(self) -> None:
        """On the kernel's thread: hand the request to the engine."""
        tokenizer = self._service.tokenizer
        hidden = self.request.stop_ids
        self._texts = [TextOutput(tokenizer, self._stop, hidden) for _ in range(self.request.n)]
        try:
            self._seqs = self._service.engine.submit(self.request, self)
        except LightworkError as error:
            self.loop.call_soon_threadsafe(self._refuse, error)
        else:
            for taker in self._service.takers:
                self._context.run(taker.took, self._seqs, self._stop)
            self.loop.call_soon_threadsafe(self._accept)

    def _refuse(self, error: LightworkError) -> None:
        if not self.accepted.done():
            self.accepted.set_exception(error)

    def _accept(self) -> None:
        if not self.accepted.done():
            self.accepted.set_result(None)

    # -- Sink, on the kernel's thread

    def prompt(self, seq: Seq, picks: Sequence[Pick]) -> None:
        self._service.put(self, Delta(index=self._index(seq), prompt_picks=tuple(picks)))

    def tokens(self, seq: Seq, picks: Sequence[Pick]) -> int | None:
        text, stands = self._texts[self._index(seq)].push(picks)
        kept = tuple(picks if stands is None else picks[:stands])
        self._service.put(self, Delta(index=self._index(seq), text=text, picks=kept))
        return stands

    def finish(self, seq: Seq, reason: FinishReason, error: Exception | None) -> None:
        index = self._index(seq)
        output = self._texts[index]
        text = output.flush() if reason in ("stop", "length") else ""
        last = Delta(index=index, text=text, reason=reason, error=error, usage=_usage(seq), stop=output.found)
        self._service.put(self, last)

    def _index(self, seq: Seq) -> int:
        return seq.sampling.seed - self.request.sampling.seed

    # -- the caller's side

    async def __aiter__(self) -> AsyncIterator[Delta]:
        try:
            while self._open:
                delta = await self.queue.get()
                self._open -= delta.reason is not None
                yield delta
        finally:
            if self._open:
                self.cancel()

    def cancel(self) -> None:
        """Stop generating; safe to call at any time, from any thread."""
        self._service.kernel.post(lambda: self._service.engine.cancel(self._seqs))


def _usage(seq: Seq) -> Usage:
    end = seq.finished_s if seq.finished_s is not None else seq.arrived_s
    started = seq.started_s if seq.started_s is not None else end
    first = seq.first_token_s if seq.first_token_s is not None else end
    return Usage(
        prompt_tokens=seq.prompt_len,
        output_tokens=seq.num_output,
        cached_tokens=seq.cached,
        queue_s=started - seq.arrived_s,
        prefill_s=first - started,
        decode_s=end - first,
        drafted=seq.drafted,
        accepted=seq.accepted,
        num_preempted=seq.num_preempted,
    )


class Service:
    """One model being served: its engine runs on the service's own thread until `close`.

    takers: are told of requests that the engine took.
    """

    def __init__(
        self,
        kernel: Kernel,
        engine: Engine | Fleet,
        tokenizer: Tokenizer,
        takers: Sequence[Taker] = (),
    ) -> None:
        self.kernel = kernel
        self.engine = engine
        self.tokenizer = tokenizer
        self.takers = takers
        self.failure: BaseException | None = None
        self._outbox: list[tuple[Stream, Delta]] = []
        self._embedded: set[Embedded] = set()
        self._draining = False
        self._when_stopped: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._serve, name="lightwork-engine", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """True while new requests are taken."""
        stopped = self._draining or self.failure is not None
        return self._thread.is_alive() and not stopped and self.engine.alive

    @property
    def num_unfinished(self) -> int:
        """Sequences, and requests for vectors, that have not ended. May be read from any thread."""
        return self.engine.num_unfinished + len(self._embedded)

    def check_ready(self) -> None:
        """Raises NotReadyError, which says why, when no new requests are taken."""
        if self.ready:
            return
        if self.failure is None and self.engine.alive:
            raise NotReadyError(
                "the server is shutting down and takes no new requests",
                retry_after_s=RETRY_AFTER_S,
                expected="a server that stays",
                fix="send it again soon: to another server, or to this one when it is back",
            )
        failed = (
            "no engine's process is left" if self.failure is None else f"the engine stopped: {self.failure!r}"
        )
        raise NotReadyError(
            failed, retry_after_s=RETRY_AFTER_S, expected="a running engine", fix="restart the server"
        )

    async def submit(self, request: Request, stop: Sequence[str] = ()) -> Stream:
        """Start a request; returns its stream once the engine has accepted it.

        Raises what `Engine.submit` raises, and NotReadyError when the service has stopped or is draining. A
        constraint is compiled first, beside the engine's thread.
        """
        self.check_ready()
        if request.constraint is not None:
            known = grammars(self.tokenizer, self.engine.vocab_size)
            if request.constraint not in known:
                await asyncio.to_thread(known.matcher, request.constraint)
        stream = Stream(self, asyncio.get_running_loop(), request, stop)
        self.kernel.post(stream.start)
        try:
            await stream.accepted
        except asyncio.CancelledError:
            stream.cancel()
            raise
        return stream

    def put(self, stream: Stream, delta: Delta) -> None:
        """On the kernel's thread: queue a delta; all of a step's go out together."""
        if not self._outbox:
            self.kernel.call_soon(self._flush)
        self._outbox.append((stream, delta))

    async def ask(self, read: Callable[[Any], Any]) -> Any:
        """Evaluate read(engine) on the kernel's thread; here, if that has ended and so nothing changes."""
        if not self._thread.is_alive():
            return read(self.engine)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self.kernel.post(lambda: loop.call_soon_threadsafe(_resolve, answer, read(self.engine)))
        return await answer

    async def embed(self, texts: Sequence[Text]) -> list[Vector]:
        """The vectors of texts; cancelled, those that have not begun are not computed.

        Raises UsageError where the plan gives no hidden states, and NotReadyError when the service has
        stopped, stops meanwhile or is draining.
        """
        asked = Embedded(self.kernel, asyncio.get_running_loop(), texts)
        self._embedded.add(asked)
        try:
            self.check_ready()  # whoever ends the service from here on, knows of these texts
            self.kernel.post(asked.start, self.engine)
            return await asked.answer
        except LightworkError as error:
            if not isinstance(error, UsageError):
                self.check_ready()
            raise
        finally:
            self._embedded.discard(asked)
            self.kernel.post(asked.cancel)

    async def drain(self) -> None:
        """Take no new requests and end training; return when the accepted requests have finished and what was
        trained is kept, or when the engine has stopped."""
        self._draining = True
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def tell() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

        async def wait() -> None:
            if self._trains is not None:
                await self._trains.end()
            await self.engine.drained()
            for asked in [*self._embedded]:
                await asked.done
            tell()

        self._when_stopped.append(tell)
        self.kernel.post(lambda: self.kernel.spawn(wait(), name="drain"))
        if self._thread.is_alive():
            await done.wait()

    def end_training(self) -> bool:
        """Train no more, so that what was accepted is served sooner, and keep what was trained; whether
        anything was being trained. From any thread."""
        trains = self._trains
        if trains is None or trains.training.finished:
            return False
        self.kernel.post(trains.end)
        return True

    @property
    def _trains(self) -> TrainingRunner | None:
        runner = self.engine.runner if isinstance(self.engine, Engine) else None
        return runner if isinstance(runner, TrainingRunner) else None

    def cancel(self) -> None:
        """Take no new requests, and end the accepted ones with an error, soon. From any thread."""
        self._draining = True
        self.kernel.post(self._cancel_all)

    def close(self) -> None:
        """Stop the kernel's thread, then what guesses tokens. Unfinished requests are cancelled."""
        self.cancel()
        if self._thread.is_alive():
            self.kernel.stop()
            self._thread.join()
        self.engine.close()

    def _cancel_all(self) -> None:
        engine = self.engine
        # Each round may release continuations that waited for another one of their request.
        while unfinished := engine.unfinished():
            engine.cancel(unfinished)
        self._flush()
        self._end_embedded()

    def _serve(self) -> None:
        try:
            self.kernel.run(self.engine.run())
        except BaseException as error:
            self.failure = error
            self._flush()
        finally:
            self._end_embedded()
            for tell in self._when_stopped:
                tell()

    def _end_embedded(self) -> None:
        """Who waits for vectors waits in vain."""
        for asked in [*self._embedded]:
            asked.give_up(LightworkError("the service ended"))

    def _flush(self) -> None:
        items, self._outbox = self._outbox, []
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Delta]]] = {}
        for stream, delta in items:
            by_loop.setdefault(stream.loop, []).append((stream, delta))
        for loop, batch in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_deliver, batch)


def _deliver(batch: list[tuple[Stream, Delta]]) -> None:
    for stream, delta in batch:
        stream.queue.put_nowait(delta)


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)
