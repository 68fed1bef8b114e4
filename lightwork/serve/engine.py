"""The engine: plan, draft, run, verify, commit. The only owner of mutable serving state.

It is a coroutine on the runtime's kernel and knows neither torch nor the simulator: the same object serves
real requests and predicts a cluster. All methods are called on the kernel's thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, Literal, NamedTuple

from lightwork.decode.constraints import Constraint, Matcher
from lightwork.decode.proposers import Drafter
from lightwork.decode.verifiers import Verifier
from lightwork.decode.verifiers.match import Match
from lightwork.errors import InvariantError, LightworkError
from lightwork.memory.kv import KVCache
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel
from lightwork.serve.drafting import Drafting
from lightwork.serve.embedding import Embedding, Text, Vector
from lightwork.serve.flights import Flights
from lightwork.serve.forming import Forming
from lightwork.serve.notes import Notes
from lightwork.serve.results import Results
from lightwork.serve.runner import Runner, Scores
from lightwork.serve.schedulers import Scheduler, Step, View
from lightwork.serve.sequence import FinishReason, Lender, Limits, Request, Sink, begin, check_request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.training import Training
from lightwork.serve.transfers import Transfers


class Gauges(NamedTuple):
    """How full an engine is: sequences, and the share of its KV blocks in use."""

    running: int
    waiting: int
    kv_usage: float


class Engine:
    """Serves requests on one runner.

    waiting, running: sequences, in order of queue and admission. steps: how many were started. name: in the
    trace. ids: of its sequences, where several engines share a kernel. began, left: see `watch`. training:
    what is trained beside; the runner computes it. predict: see `View`. num_probes, forming: see `Drafting`.
    constrain: compiles constraints; None where texts are made up, and so are held to none.
    """

    def __init__(
        self,
        kernel: Kernel,
        runner: Runner,
        kv: KVCache,
        scheduler: Scheduler[Any],
        *,
        limits: Limits,
        proposer: Drafter | None = None,
        verifier: Verifier | None = None,
        vocab_size: int = 1 << 31,
        name: str = "engine",
        ids: Iterator[int] | None = None,
        training: Training | None = None,
        predict: Callable[[Step], float] | None = None,
        num_probes: int = 0,
        forming: Forming | None = None,
        constrain: Callable[[Constraint], Matcher] | None = None,
    ) -> None:
        self.kernel = kernel
        self.runner = runner
        self.kv = kv
        self.scheduler = scheduler
        self._state = scheduler.init()
        self.limits = limits
        self.proposer = proposer
        self.vocab_size = vocab_size
        self.waiting: list[Seq] = []
        self._arrived: list[Seq] = []
        self.running: list[Seq] = []
        self.name = name
        self.began: Callable[[Seq], object] | None = None
        self.left: Callable[[Seq], None] | None = None
        self.training, self.predict, self.forming = training, predict, forming
        self._constrain = constrain
        self._drafting = (
            None if proposer is None else Drafting(proposer, kv, vocab_size, predict, num_probes, forming)
        )
        self.steps = 0
        self._held = self._lent = 0
        self._ids = ids or count()
        self._bell: Future = kernel.future("a request")
        self._idle: list[Future] = []
        self._flights = Flights(kernel, runner)
        self._notes = Notes(kernel, name)
        self._results = Results(
            kv, self._drafting, verifier or Match(), kernel.now, self._has_begun, self._finish
        )
        self._embedding = Embedding(kernel, runner, self._notes)
        self._transfers = Transfers(kernel, runner, kv, self._notes, self._arrived_kv, self._copied)

    # -- requests

    def submit(self, request: Request, sink: Sink | None = None) -> list[Seq]:
        """Queue a request; one sequence per continuation, seeds counting up from the request's.

        Raises CapacityError if it can never fit, RangeError for impossible values, BusyError if the queue
        is full, ConstraintError if outputs cannot be held to its constraint.
        """
        check_request(request, self.limits, self.kv.capacity(), self.num_unfinished - len(self.running))
        seqs = begin(request, sink, self._ids, self.kernel.now())
        if request.constraint is not None:
            for seq in seqs:
                seq.matcher = self._matcher(request.constraint)
        seqs[0].siblings = seqs[1:]
        self._held += request.n - 1
        self._queue([seqs[0]])
        self._notes.moment(
            "arrive", seqs[0], prompt=len(request.prompt), max_tokens=request.max_tokens, n=request.n
        )
        self._ring()
        return seqs

    def _matcher(self, constraint: Constraint) -> Matcher | None:
        return None if self._constrain is None else self._constrain(constraint)

    def close(self) -> None:
        """End what guesses tokens, if anything does; called when no more is asked."""
        if self._drafting is not None:
            self._drafting.close()

    async def embed(self, text: Text) -> Vector:
        """The vector of a text, beside the steps. Raises UsageError where the plan gives no hidden states."""
        return await self._embedding.embed(text)

    def cancel(self, seqs: Iterable[Seq]) -> None:
        """End sequences whose caller has gone; their blocks are free at once, or when their step ends."""
        for seq in seqs:
            if seq.finished is None:
                self._finish(seq, "cancelled")
        self._tell_if_idle()
        self._ring()

    @property
    def num_unfinished(self) -> int:
        return len(self.waiting) + len(self.running) + self._held

    @property
    def gauges(self) -> Gauges:
        """As they are now; may be read from any thread."""
        return Gauges(len(self.running), len(self.waiting), self.kv.usage)

    @property
    def alive(self) -> bool:
        return self.runner.alive

    @property
    def computing(self) -> int | None:
        """How many steps have begun, if the last has not ended."""
        return self.steps if self._flights else None

    @property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values fit."""
        return self.kv.capacity()

    def unfinished(self) -> list[Seq]:
        """Who has not ended, without continuations that wait for another one of their request."""
        return [seq for seq in (*self.waiting, *self.running) if seq.finished is None]

    def watch(self, *, began: Callable[[Seq], object] | None, left: Callable[[Seq], None]) -> None:
        """Tell when a sequence has its first token, and when it has ended and gone."""
        self.began, self.left = began, left

    async def drained(self) -> None:
        """Return when every sequence has finished."""
        while self.num_unfinished or self._flights or self._transfers.stores:
            self._idle.append(self.kernel.future("the engine to drain"))
            await self._idle[-1]

    # -- the loop

    async def run(self) -> None:
        """Serve for ever: plan a step whenever the runner can take one.

        If a law is broken, every caller is told before the error is raised.
        """
        try:
            await self._serve()
        except Exception as error:
            while unfinished := self.unfinished():
                for seq in unfinished:
                    self._finish(seq, "error", error)
            raise

    async def _serve(self) -> None:
        while True:
            planned_s = self.kernel.now()
            step = self._plan(self.training) if len(self._flights) < self.runner.depth else None
            if step is None:
                self._bell = self.kernel.future("a request")
                await self._bell
                continue
            self.steps += 1
            self._flights.enter(self.steps)
            for ended in step.after:
                await ended
                planned_s = self.kernel.now()
            under_way = self._start(step)  # in the order in which they are planned
            self.kernel.spawn(
                self._run_step(step, self.steps, planned_s, under_way), name=f"step {self.steps}"
            )

    def _plan(self, training: Training | None) -> Step | None:
        idle = not self.waiting and not self.running and not self.kv.num_pins
        if idle and (training is None or training.finished):
            return None
        if self._transfers.come_first(len(self.running)):
            return None
        arrived, self._arrived = self._arrived, []
        view = View(
            self.kernel.now(),
            self._transfers.ready(self.waiting),
            self.running,
            arrived,
            self.kv,
            self.limits,
            training=training,
            predict=self.predict,
        )
        step = self.scheduler.plan(self._state, view)
        if step.changes_nothing:
            busy = self._flights or self._lent or self._transfers.busy
            if not busy and (self.waiting or self.running):
                raise InvariantError(
                    f"{self.scheduler!r} planned nothing with {len(self.waiting)} sequences waiting and "
                    f"{len(self.running)} running",
                    expected="a step while something fits",
                )
            return None
        self._apply(step)
        return step if step.chunks or step.slices else self._plan(training)

    def _apply(self, step: Step) -> None:
        """Carry out what the scheduler decided, holding it to the laws of a step."""
        for pin in step.pins:
            self.kv.pin(*pin)
        for name in step.unpins:
            self.kv.unpin(name)
        for seq in step.preempted:
            self._preempt(seq, step.requeue)
        if step.admitted:
            starts = {chunk.seq.id: chunk.start for chunk in step.chunks}
            for seq in step.admitted:
                self._admit(seq, starts.get(seq.id))
            for seq in step.admitted:
                if seq.id not in starts:
                    self._begin_pull(seq)
        if step.chunks:
            step.copies, self._results.copies = self._results.copies, []
        seen: set[int] = set()
        for chunk in step.chunks:
            seq = chunk.seq
            known = len(seq.tokens) + seq.ahead
            ahead = 0 < chunk.count <= known - seq.computed and chunk.start == seq.computed
            if not ahead or seq.busy or seq.id in seen:
                raise InvariantError(f"{self.scheduler!r} planned {chunk} against the laws of a step")
            seen.add(seq.id)
            copies = self.kv.reserve(seq.id, known)
            if copies is None:
                raise InvariantError(f"{self.scheduler!r} planned {seq} without blocks for {known} tokens")
            step.copies += copies
            step.known.append(known)
        if step.chunks and not (self._flights or self._lent or self._transfers.busy):
            moves, step.left = self.kv.gather()
            step.copies += moves
        if self._drafting is not None:
            self._drafting.offer(step, may_leave=self.began is not None)
        self._flights.take(step, self._goes_on)
        step.after += self._transfers.conflicts()
        if self.training is not None:
            self.training.move(step.slices)

    def _goes_on(self, seq: Seq) -> bool:
        """Whether it can be planned on while its next token is being chosen: not if it certainly ends with
        that, may leave with it, or drafts follow it."""
        leaves = self.began is not None and seq.first_token_s is None
        return self.proposer is None and seq.output_left > 1 and not leaves

    def _start(self, step: Step) -> Awaitable[Scores]:
        try:
            return self.runner.run(step)
        except Exception as error:
            failed = self.kernel.future("a step")
            failed.fail(error)
            return failed

    async def _run_step(self, step: Step, number: int, start_s: float, under_way: Awaitable[Scores]) -> None:
        try:
            scores = await under_way
        except Exception as error:
            self._fail(step, error)
        else:
            emitted = [self._commit(step, i, scores) for i in range(len(step.chunks))]
            running, waiting, usage = self.gauges
            self._notes.step(step, number, start_s, emitted, waiting=waiting, running=running, kv_usage=usage)
        self._flights.leave(number)
        self._tell_if_idle()
        self._ring()

    # -- results

    def _commit(self, step: Step, i: int, scores: Scores) -> int:
        """Take in the result of one chunk; returns the number of tokens emitted."""
        seq = step.chunks[i].seq
        stands = self._flights.give(step, i)
        if seq.finished is not None:
            if stands and not seq.busy:
                self._leave(seq)
            return 0
        try:
            return self._results.take_in(step, i, scores, stands=stands)
        except Exception as error:  # whatever a verifier or sink raises ends this sequence only
            if seq.finished is None:
                self._finish(seq, "error", error)
            return 0

    def _fail(self, step: Step, error: Exception) -> None:
        """The runner could not do the step: its sequences end with the error, everybody else goes on."""
        for i, chunk in enumerate(step.chunks):
            if not self._flights.give(step, i):
                continue
            if chunk.seq.finished is None:
                self._finish(chunk.seq, "error", error)
            elif not chunk.seq.busy:
                self._leave(chunk.seq)

    # -- moves between the queues

    def _queue(self, seqs: Iterable[Seq]) -> None:
        came = [*seqs]
        self.waiting += came
        self._arrived += came

    def _admit(self, seq: Seq, start: int | None) -> None:
        """Its chunk starts behind what it shares of the prefix cache; None: its KV comes from elsewhere."""
        self.waiting.remove(seq)
        self.running.append(seq)
        model = seq.request.model
        if seq.source is not None:
            self.kv.attach(seq.id, (), model=model)
            return
        fetched = 0
        if start is None:  # what is fetched begins with a whole block
            start = (
                self.kv.peek(seq.tokens, None, model).num_tokens // self.kv.block_size * self.kv.block_size
            )
            fetched = self.kv.fetchable(seq.tokens, start, None, model)
        seq.computed = self.kv.attach(seq.id, seq.tokens, start, model)
        if seq.started_s is None:
            seq.started_s = self.kernel.now()
            seq.cached = seq.computed + fetched
        self._notes.moment("admit", seq, known=seq.known, cached=seq.computed + fetched)

    def _begin_pull(self, seq: Seq) -> None:
        """Give an admitted sequence the blocks for its KV, which is elsewhere."""
        if self.kv.reserve(seq.id, seq.known) is None:
            raise InvariantError(f"{self.scheduler!r} admitted {seq} without blocks for {seq.known} tokens")
        seq.busy += 1
        self._transfers.begin(seq, self._flights.writing())

    def _preempt(self, seq: Seq, requeue: Literal["front", "back"]) -> None:
        if seq.busy:
            raise InvariantError(f"{self.scheduler!r} preempted {seq} while its step was in flight")
        self.running.remove(seq)
        self.waiting.insert(0 if requeue == "front" else len(self.waiting), seq)
        self._release(seq)
        seq.computed = seq.ahead = seq.flying = 0
        seq.num_preempted += 1
        self._notes.moment("preempt", seq)

    # -- between engines

    @property
    def pool(self) -> Any:
        """What another engine's runner copies KV from."""
        return self.runner.pool

    def lend(self, seq: Seq) -> None:
        """Let a sequence go on elsewhere; its KV stays here until it has been pulled."""
        self.running.remove(seq)
        self._lent += 1

    def lent(self, seq: Seq) -> Sequence[int]:
        return self.kv.table(seq.id)

    def give_up(self, seq: Seq) -> None:
        """Free the KV of a sequence that went on elsewhere."""
        self._lent -= 1
        if self._drafting is not None:
            self._drafting.forget(seq)
        self.kv.release(seq.id)
        self._ring()

    def take_back(self, seq: Seq) -> None:
        """Go on with a sequence that was lent, and stays after all."""
        self._lent -= 1
        self.running.append(seq)
        self._ring()

    def adopt(self, seq: Seq, source: Lender | None = None) -> None:
        """Go on with a sequence of another engine, whose KV `source` lends; None: it is computed again."""
        seq.source = source
        if seq.request.constraint is not None and seq.matcher is None:
            with suppress(LightworkError):  # its next token will not be chosen without
                seq.matcher = self._matcher(seq.request.constraint)
        self._queue([seq])
        self._ring()

    def _arrived_kv(self, seq: Seq, computed: int, failed: Exception | None) -> None:
        """KV of an admitted sequence is there, or is not: it runs from now on, or ends."""
        seq.busy -= 1
        if seq.finished is not None:
            self._leave(seq)
        elif failed is not None:
            self._finish(seq, "error", failed)
        else:
            seq.computed = computed
            self.kv.commit(seq.id, seq.tokens, computed)
        self._copied()

    def _copied(self) -> None:
        self._tell_if_idle()
        self._ring()

    def _release(self, seq: Seq) -> None:
        """Give up its blocks. They are not stored while rows of accepted drafts are still to be moved."""
        if self._drafting is not None:
            self._drafting.forget(seq)
        self._transfers.release(seq, store=not self._results.copies)

    def _finish(self, seq: Seq, reason: FinishReason, error: Exception | None = None) -> None:
        seq.finished = reason
        seq.busy, seq.flying, seq.ahead = seq.busy + seq.flying, 0, 0
        seq.finished_s = self.kernel.now()
        self._notes.moment("finish", seq, reason=reason, output=seq.num_output)
        if seq.sink is not None:
            seq.sink.finish(seq, reason, error)
        self._release_siblings(seq)
        if not seq.busy:
            self._leave(seq)

    def _leave(self, seq: Seq) -> None:
        """A finished sequence that no step contains any more gives up its place and its blocks."""
        if seq in self.running:
            self.running.remove(seq)
            self._release(seq)
        elif seq in self.waiting:
            self.waiting.remove(seq)
            if seq.source is not None:
                seq.source.give_up(seq)
                seq.source = None
        if self.left is not None:
            self.left(seq)

    def _has_begun(self, seq: Seq) -> None:
        """It has its first token, and goes on: here, or elsewhere."""
        if seq.siblings:
            self._release_siblings(seq)
        if self.began is not None:
            self.began(seq)

    def _release_siblings(self, seq: Seq) -> None:
        """The other continuations start when the first has put the prompt into the prefix cache."""
        siblings, seq.siblings = seq.siblings, []
        self._held -= len(siblings)
        self._queue(s for s in siblings if s.finished is None)

    # -- small parts

    def _tell_if_idle(self) -> None:
        if not self.num_unfinished and not self._flights and not self._transfers.stores:
            self._plan(None)  # the scheduler lets go of what it has pinned
            idle, self._idle = self._idle, []
            for future in idle:
                future.set(None)

    def _ring(self) -> None:
        if not self._bell.done:
            self._bell.set(None)
