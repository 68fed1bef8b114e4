"""The kind of technique that decides which tokens of which sequences run in the next step.

A scheduler is a pure function of its state and its view: it reads, builds a `StepPlan`, and returns the
`Step`. The engine keeps the state and applies the step. The plan keeps the arithmetic of blocks and budget,
so a policy is the few lines its paper is about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal, NamedTuple, Protocol, TypeVar

from lightwork.decode.proposers import Draft
from lightwork.memory.kv import Copy
from lightwork.memory.prefix import Hit
from lightwork.runtime.futures import Future
from lightwork.serve.sequence import Limits
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.training import Slice, Training


class Chunk(NamedTuple):
    """Run tokens [start, start + count) of a sequence; the next is chosen iff that reaches the last known.

    A NamedTuple because one is made for every token of a simulation.
    """

    seq: Seq
    start: int
    count: int  # type: ignore[assignment]

    @property
    def end(self) -> int:
        return self.start + self.count


class Pin(NamedTuple):
    """Keep the KV of a text's first tokens, whoever has computed it with `model`, until the pin is
    dropped by its name."""

    name: int
    tokens: Sequence[int]
    model: str = ""


@dataclass(slots=True, kw_only=True)
class Step:
    """One forward pass. The engine adds drafts, copies and what steps in flight have to do with it, the
    scheduler all else.

    The chunk of an admitted sequence starts behind what it shares of the prefix cache; one whose KV comes
    from another engine or from host memory has none yet. requeue: where in the queue those preempted go.
    pins, unpins: of prefixes; a step without chunks is only applied, then the scheduler is asked again.
    budget: rows this step may have; what chunks leave is offered to drafts. drafts: one per chunk, or none at
    all. left: blocks that hold nothing once it is copied. after: what has to end before it may run.
    slices: of training, computed with it; with rows as far as it takes no more than limit_s in all.
    next_model: whose turn comes after this step's model, if that is known, so that its weights can be
    brought. shared: of each chunk, the first keys that attention reads for another one anyway; set by a
    runner whose kernels do so. known: tokens known of each chunk's sequence when it was planned.
    before_s, beside_s: what forming the drafts takes before the step, or while it is computed, by a price or
    a table and never by a clock: simulated steps take as much longer.
    ahead: chunks whose sequences may be planned on before it has ended, each with how often the sequence had
    been preempted. fed: chunks whose last token is still being chosen, each with that one of the step before
    that chooses it.
    """

    chunks: list[Chunk] = field(default_factory=list)
    admitted: list[Seq] = field(default_factory=list)
    preempted: list[Seq] = field(default_factory=list)
    requeue: Literal["front", "back"] = "front"
    pins: list[Pin] = field(default_factory=list)
    unpins: list[int] = field(default_factory=list)
    budget: int = 0
    drafts: list[Draft] = field(default_factory=list)
    before_s: float = 0.0
    beside_s: float = 0.0
    copies: list[Copy] = field(default_factory=list)
    left: Sequence[range] = ()
    after: list[Future] = field(default_factory=list)
    slices: Sequence[Slice] = ()
    limit_s: float = inf
    next_model: str | None = None
    shared: Sequence[int] = ()
    known: list[int] = field(default_factory=list)
    ahead: dict[int, int] = field(default_factory=dict)
    fed: list[tuple[int, int]] = field(default_factory=list)

    @property
    def changes_nothing(self) -> bool:
        return not (self.chunks or self.admitted or self.preempted or self.pins or self.unpins or self.slices)

    @property
    def num_rows(self) -> int:
        return sum(chunk.count for chunk in self.chunks) + sum(map(len, self.drafts))

    def lengths(self) -> Sequence[int]:
        """Tokens known of each chunk's sequence: those of a step that is only thought of, now."""
        return self.known or [chunk.seq.known for chunk in self.chunks]

    def draft(self, chunk: int) -> Draft:
        return self.drafts[chunk] if self.drafts else NO_DRAFT


NO_DRAFT = Draft()


class Blocks(Protocol):
    """What a scheduler may ask the KV cache: counts only. See `KVCache`."""

    @property
    def block_size(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def free(self) -> int: ...
    def peek(self, tokens: Sequence[int], limit: int | None = None, model: str = "") -> Hit: ...
    def fetchable(
        self, tokens: Sequence[int], cached: int, limit: int | None = None, model: str = ""
    ) -> int: ...
    def needs(self, seq_id: int, upto: int) -> int: ...
    def needs_new(self, hit: Hit, upto: int) -> int: ...
    def headroom(self, share: float) -> int: ...
    def gains(self, seq_id: int) -> int: ...


@dataclass(frozen=True, slots=True)
class View:
    """All that a scheduler may see.

    waiting: in order of the queue. running: in order of admission. arrived: who came since the last plan,
    or was preempted by a technique around this one, finished since then or not. shares: the most prefix
    tokens to share, by sequence id, where a technique limits them. training: that goes on beside, if any.
    predict: seconds that a step will take, by a model of it and never by measuring; None where there is none.
    """

    now_s: float
    waiting: Iterable[Seq]
    running: Sequence[Seq]
    arrived: Sequence[Seq]
    blocks: Blocks
    limits: Limits
    shares: Mapping[int, int] = field(default_factory=dict)
    training: Training | None = None
    predict: Callable[[Step], float] | None = None


S = TypeVar("S")


class Scheduler(Protocol[S]):
    """Which tokens of which sequences run next. Synchronous, deterministic, without side effects but on the
    state, which the engine keeps."""

    def init(self) -> S:
        """The state of a new engine; None if there is none."""
        ...

    def plan(self, state: S, view: View) -> Step: ...


class StepPlan:
    """A step under construction: what it contains so far, and what is left of budget, blocks and places."""

    def __init__(
        self,
        view: View,
        budget: int,
        *,
        watermark: float = 0.01,
        requeue: Literal["front", "back"] = "front",
    ) -> None:
        self.view = view
        self.room = budget
        self._budget = budget
        self._free = view.blocks.free
        self._reserve = view.blocks.headroom(watermark)
        self._requeue = requeue
        self._chunks: list[Chunk] = []
        self._admitted: list[Seq] = []
        self._preempted: list[Seq] = []
        self._gone: set[int] = set()
        self._idle: tuple[list[Seq], list[Seq]] | None = None

    def running(self, *, decoding: bool) -> list[Seq]:
        """Running sequences that can be planned now, oldest first, but for those that have been preempted."""
        if self._idle is None:
            decodes: list[Seq] = []
            prompts: list[Seq] = []
            for seq in self.view.running:
                if not seq.busy:
                    known = len(seq.tokens) + seq.ahead
                    is_decode = known - seq.computed == 1 and known > seq.prompt_len
                    (decodes if is_decode else prompts).append(seq)
            self._idle = decodes, prompts
        some = self._idle[0 if decoding else 1]
        return [seq for seq in some if seq.id not in self._gone] if self._gone else some

    def decode(self, seq: Seq, *, preempt: bool = True) -> bool:
        """Plan one token; while blocks are short, preempt the youngest running sequence, at last this one.

        preempt=False: preempt nobody. False if the sequence has to wait: it was preempted, or its blocks are
        with another or a step in flight.
        """
        if seq.id in self._gone or not self._make_room(seq, preempt):
            return False
        self._add(seq, seq.computed, 1)
        return True

    def extend(self, seq: Seq) -> None:
        """Plan the next chunk of a prompt. Its blocks were reserved at admission, but for a token that came
        since, from a step that was in flight when the sequence was preempted."""
        count = min(seq.left, self.room)
        if count > 0 and self._make_room(seq, preempt=True):
            self._add(seq, seq.computed, count)

    def _make_room(self, seq: Seq, preempt: bool) -> bool:
        """Take the blocks for what is known of a sequence; False if it has to wait for them."""
        need = self.view.blocks.needs(seq.id, len(seq.tokens) + seq.ahead)
        while need > self._free:
            victim = self._youngest() if preempt else None
            if victim is None:
                return False
            self.preempt(victim)
            if victim is seq:
                return False
        self._free -= need
        return True

    def preempt(self, seq: Seq) -> None:
        """Free the sequence's blocks; it goes back into the queue and is recomputed later."""
        self._gone.add(seq.id)
        self._preempted.append(seq)
        self._free += self.view.blocks.gains(seq.id)

    def admit(self, seq: Seq, *, whole: bool = False) -> bool:
        """Admit the head of the queue with blocks for all its known tokens; False if it must wait.

        Nobody is admitted in a step that preempts, so that blocks are not taken from one for another. Who has
        its KV elsewhere, at another engine or in host memory, is given blocks for it, and runs when it is
        there. whole: plan all that is left of it in this step, whatever the budget, as engines without
        chunks do, and as encoders need it.
        """
        running = len(self.view.running) + len(self._admitted)
        if running >= self.view.limits.max_seqs or self._preempted:
            return False
        share = self.view.shares.get(seq.id) if seq.request.prompt_logprobs is None else 0
        if seq.source is not None:
            share = 0
        blocks = self.view.blocks
        model = seq.request.model
        hit = blocks.peek(seq.tokens, share, model)
        need = blocks.needs_new(hit, seq.known)
        if need > self._free - (self._reserve if running else 0):
            return False
        self._free -= need
        self._admitted.append(seq)
        if seq.source is not None or blocks.fetchable(seq.tokens, hit.num_tokens, share, model):
            return True
        left = seq.known - hit.num_tokens
        whole = whole or seq.request.encoded > 0
        self._add(seq, hit.num_tokens, left if whole else min(left, self.room))
        return True

    def step(self) -> Step:
        return Step(
            chunks=self._chunks,
            admitted=self._admitted,
            preempted=self._preempted,
            requeue=self._requeue,
            budget=self._budget,
        )

    def _add(self, seq: Seq, start: int, count: int) -> None:
        self._chunks.append(Chunk(seq, start, count))
        self.room -= count

    def _youngest(self) -> Seq | None:
        planned = {chunk.seq.id for chunk in self._chunks}
        for seq in reversed(self.view.running):
            if not seq.busy and seq.id not in planned and seq.id not in self._gone:
                return seq
        return None
