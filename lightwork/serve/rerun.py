"""Serve a recorded run again, from its plan and its requests: are its tokens and its decisions the same?

What an engine decides depends on what it was asked and when, counted in decisions and not in seconds. So each
request comes when as many decisions had been told, and as many steps begun, as when it came for the first
time; and where steps overlap, the next one is planned when as many decisions had been told. On a virtual
clock also at the same second, and then every span has to be the same, to the last bit.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lightwork.decode.proposers.pearl import Pearl
from lightwork.decode.sampling import Pick
from lightwork.errors import SpecError
from lightwork.models.tokenizer import Tokenizer
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.progress import Progress
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.engine import Engine
from lightwork.serve.fleet import Fleet
from lightwork.serve.form_times import FormTimes
from lightwork.serve.opening import open_engine, open_one
from lightwork.serve.plan import Plan, contains
from lightwork.serve.row_times import RowTimes
from lightwork.serve.run_folder import DECIDED, Came, Recorded, begun, to_line
from lightwork.serve.runner import AroundRunner, Runner, Scores
from lightwork.serve.schedulers import Step
from lightwork.serve.sequence import FinishReason
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulated import open_simulated
from lightwork.serve.text import TextOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first place where two runs differ. where: which event, or which token of which sequence."""

    where: str
    recorded: str
    now: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """What came of it. events, tokens: how many were compared. compared: which events; "" if none are.

    why: if none are, why not. difference: the first one, None if all is the same.
    """

    trace: Trace
    requests: int
    events: int
    tokens: int
    compared: str
    why: str
    difference: Difference | None


def rerun(run: Recorded, plan: Plan, progress: Progress | None = None) -> Rerun:
    """Serve the requests of a run under a plan: its own, unless somebody wants to see what another one
    changes.

    Raises SpecError for a run that trained, and what opening an engine raises.
    """
    if "tuning" in plan.techniques():
        raise SpecError("a run that trained is not run again", expected="one that only serves")
    plan = replace(plan, max_waiting=max(plan.max_waiting, sum(len(came.ids) for came in run.came) + 1))
    kernel, simulated = Kernel(seed=run.seed), plan.on.startswith("sim:")
    if not simulated:
        kernel = Kernel(WallClock(), seed=run.seed)
    kernel.trace = Trace(f"{'simulated' if simulated else 'real'}: {plan.on}, again")
    engine, tokenizer, close = _open(plan, kernel, run, progress)
    why = "" if simulated else _undecided(plan)
    again = _Again(run, engine, tokenizer, timed=simulated, ordered=not why)
    try:
        kernel.trace.observers.append(again)
        again.serve()
    finally:
        close()
    difference, tokens = again.compare_texts()
    compared = "all, times included" if simulated else "decisions, without times"
    return Rerun(
        trace=kernel.trace,
        requests=sum(came.request is not None for came in run.came),
        events=again.same,
        tokens=tokens,
        compared="" if why else compared,
        why=why,
        difference=again.difference or difference,
    )


def _open(
    plan: Plan, kernel: Kernel, run: Recorded, progress: Progress | None
) -> tuple[Engine | Fleet, Tokenizer | None, Callable[[], object]]:
    """The engine, who decodes its text, and how to end both."""
    if plan.on.startswith("sim:"):
        simulated, _ = open_simulated(plan, kernel)
        return simulated, None, simulated.close
    engine: Engine | Fleet
    if "router" in plan.techniques() or plan.on.startswith("ray:"):
        engine, model, _ = open_engine(plan, kernel, progress)
    else:  # what rows and drafts take was measured; decided by the same figures, drafts get the same rows
        about, parts = run.trace.about, dict[str, Any]()
        if "row_times" in about:
            parts["predict"] = RowTimes.told(about["row_times"]).predict
        if "form_times" in about:
            parts["forming"] = lambda drafter: FormTimes.told(about["form_times"])
        engine, model, _ = open_one(plan, kernel, progress, **parts)

    def close() -> None:
        engine.close()
        model.close()

    return engine, model.tokenizer, close


def _undecided(plan: Plan) -> str:
    """Why a real run decides as its threads and processes happen to be timed; "" if it does not."""
    chosen = plan.techniques()
    if "router" in chosen or plan.on.startswith("ray:"):
        return "engines are processes of their own, which take what comes when it comes"
    if "tier" in chosen:
        return "copies to and from host memory end when they end"
    if contains(chosen.get("proposer"), Pearl):
        return "drafts are written on a thread beside the steps"
    return ""


class _Again:
    """Lets requests come when they came, and compares what is told with what was told: an observer.

    timed: not before their second. ordered: not before the decisions that came before them; where these are
    not comparable, all at once. same: events that were.
    """

    def __init__(
        self,
        run: Recorded,
        engine: Engine | Fleet,
        tokenizer: Tokenizer | None,
        *,
        timed: bool,
        ordered: bool,
    ) -> None:
        self.run, self.engine, self.kernel = run, engine, engine.kernel
        self.tokenizer, self.timed, self.ordered = tokenizer, timed, ordered
        self.due = list(reversed(run.came))
        self.told = [span for span in run.trace.spans if timed or span.kind in DECIDED]
        self.before = {} if timed else _before_steps(run.trace.spans)
        self.decided = self.same = 0
        self.difference: Difference | None = None
        self.seqs: dict[int, Seq] = {}
        self._woken = False
        for one in engine.engines if isinstance(engine, Fleet) else [engine]:
            if isinstance(one, Engine):
                one.runner = _InTurn(one.runner, self._comes, self.wake)

    def serve(self) -> None:
        """Raises what serving raises."""
        serving = self.kernel.spawn(self.engine.run(), name="engine")
        try:
            self.kernel.run(self._client())
        finally:
            serving.cancel()

    async def _client(self) -> None:
        if self.timed:
            for came in self.run.came:
                self.kernel.at(came.at_s, self.wake)
        self._release()
        while self.due:
            await self.engine.drained()
            before = len(self.due)
            self._release()
            wait_s = self.due[-1].at_s - self.kernel.now() if self.due and self.timed else 0.0
            if wait_s > 0:
                await self.kernel.sleep(wait_s)
            elif self.due and len(self.due) == before:  # more had been decided when this one came
                self._differs("nothing: the engine is idle")
        await self.engine.drained()
        if self.ordered and self.difference is None and self.same < len(self.told):
            self._differs("nothing more")

    # -- what comes

    def wake(self) -> None:
        """See whether something is due, once all is done that happens now."""
        if not self._woken:
            self._woken = True
            self.kernel.call_soon(self._release)

    def _release(self) -> None:
        self._woken = False
        while self.due and self._is_due(self.due[-1]):
            came = self.due.pop()
            if came.request is None:
                if self.ordered and self.difference is None:
                    self.engine.cancel([self.seqs[id] for id in came.ids])
                continue
            sink = _Stops(self.tokenizer, came) if self.tokenizer is not None and came.stop else None
            for id, seq in zip(came.ids, self.engine.submit(came.request, sink), strict=True):
                self.seqs[id] = seq

    def _is_due(self, came: Came) -> bool:
        if self.timed and self.kernel.now() < came.at_s:
            return False
        if not self.ordered or self.difference is not None:
            return True
        return self.decided >= came.after and begun(self.engine) >= came.begun

    def _comes(self) -> bool:
        """Whether the next step is planned now: what a step beside another one contains depends on whether
        that one had ended, and on who had come."""
        under_way = isinstance(self.engine, Engine) and self.engine.computing is not None
        if self.timed or not self.ordered or self.difference is not None or not under_way:
            return True
        soon = bool(self.due) and self._is_due(self.due[-1])
        return not soon and self.decided >= self.before.get(f"step {begun(self.engine) + 1}", 0)

    # -- what is told

    def on(self, span: Span) -> None:
        if self.ordered and self.difference is None and (self.timed or span.kind in DECIDED):
            self._compare(span)
        self.decided += span.kind in DECIDED
        self.wake()

    def _compare(self, span: Span) -> None:
        """With the next of the record; where that ends, it was cut, or its server was."""
        if self.same < len(self.told):
            now = _shown(span, timed=self.timed)
            if now == _shown(self.told[self.same], timed=self.timed):
                self.same += 1
            else:
                self._differs(now)

    def _differs(self, now: str) -> None:
        then = _shown(self.told[self.same], timed=self.timed)
        self.difference = Difference(where=f"event {self.same}", recorded=then, now=now)

    def compare_texts(self) -> tuple[Difference | None, int]:
        """The first token that is another, and how many were compared. A text that was given up, or ended by
        an error, is compared as far as it goes."""
        num = 0
        for id, (reason, then) in sorted(self.run.texts.items()):
            seq = self.seqs[id]
            now = tuple(seq.tokens[seq.prompt_len :])
            broken = {reason, seq.finished} & {"cancelled", "error"}
            for i in range(min(len(then), len(now)) if broken else max(len(then), len(now))):
                old, new = (str(text[i]) if i < len(text) else "no more" for text in (then, now))
                if old != new:
                    where = f"token {i} of sequence {id}"
                    return Difference(where=where, recorded=old, now=new), num
                num += 1
        return None, num


def _shown(span: Span, *, timed: bool) -> str:
    """A span as text: equal for what counts as equal. Lists of a file and tuples of a run are the same."""
    line: dict[str, Any] = {"rank": span.rank, "kind": span.kind, "name": span.name}
    if timed:
        line |= {"start_s": span.start_s, "end_s": span.end_s, "bytes": span.bytes, "peer": span.peer}
    args = json.loads(to_line(dict(span.args or {})))
    return to_line(line | {"args": args})


@dataclass(slots=True)
class _Stops:
    """A sink that ends texts at stop strings, as those did who asked."""

    tokenizer: Tokenizer
    came: Came
    texts: dict[int, TextOutput] = field(default_factory=dict)

    def prompt(self, seq: Seq, picks: Sequence[Pick]) -> None:
        pass

    def tokens(self, seq: Seq, picks: Sequence[Pick]) -> int | None:
        if seq.id not in self.texts:
            self.texts[seq.id] = TextOutput(self.tokenizer, self.came.stop, seq.request.stop_ids)
        return self.texts[seq.id].push(picks)[1]

    def finish(self, seq: Seq, reason: FinishReason, error: Exception | None) -> None:
        self.texts.pop(seq.id, None)


def _before_steps(spans: Sequence[Span]) -> dict[str, int]:
    """How many decisions had been told when each step was planned."""
    told_s = [span.end_s for span in spans if span.kind in DECIDED]
    return {span.name: bisect_right(told_s, span.start_s) for span in spans if span.kind == "step"}


class _InTurn(AroundRunner):
    """A runner around another one, that takes a step when it may come, and tells when it begins."""

    def __init__(self, inner: Runner, comes: Callable[[], bool], begins: Callable[[], object]) -> None:
        super().__init__(inner)
        self._comes = comes
        self._begins = begins

    @property
    def depth(self) -> int:
        return self.inner.depth if self._comes() else 0

    def run(self, step: Step) -> Awaitable[Scores]:
        self._begins()
        return self.inner.run(step)
