"""The kind of technique that decides which tokens of which sequences run in the next step.

A scheduler is a pure function of its view: it reads, builds a `StepPlan`, and returns the `Step`. The
engine applies it. The plan keeps the arithmetic of blocks and budget, so a policy is the few lines its
paper is about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lightwork.decode.proposers import Draft
from lightwork.memory.kv import Copy
from lightwork.memory.prefix import Hit
from lightwork.serve.sequence import Limits
from lightwork.serve.sequence import Sequence as Seq


@dataclass(frozen=True, slots=True)
class Chunk:
    """Run tokens [start, start + count) of a sequence; the next is chosen iff that reaches the last known."""

    seq: Seq
    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count


@dataclass(slots=True, kw_only=True)
class Step:
    """One forward pass. The scheduler fills the first four fields; the engine adds drafts and copies.

    budget: rows this step may have; what chunks leave is offered to drafts. drafts: one per chunk, or none
    at all.
    """

    chunks: list[Chunk]
    admitted: list[Seq] = field(default_factory=list)
    preempted: list[Seq] = field(default_factory=list)
    budget: int = 0
    drafts: list[Draft] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return sum(chunk.count for chunk in self.chunks) + sum(map(len, self.drafts))

    def draft(self, chunk: int) -> Draft:
        return self.drafts[chunk] if self.drafts else NO_DRAFT


NO_DRAFT = Draft()


class Blocks(Protocol):
    """What a scheduler may ask the KV cache: counts only. See `KVCache`."""

    @property
    def total(self) -> int: ...
    @property
    def free(self) -> int: ...
    def peek(self, tokens: Sequence[int]) -> Hit: ...
    def needs(self, seq_id: int, upto: int) -> int: ...
    def needs_new(self, hit: Hit, upto: int) -> int: ...
    def gains(self, seq_id: int) -> int: ...


@dataclass(frozen=True, slots=True)
class View:
    """All that a scheduler may see. waiting: in order of the queue. running: in order of admission."""

    now_s: float
    waiting: Sequence[Seq]
    running: Sequence[Seq]
    blocks: Blocks
    limits: Limits


class Scheduler(Protocol):
    """Which tokens of which sequences run next. Synchronous, deterministic, without side effects."""

    def plan(self, view: View) -> Step: ...


class StepPlan:
    """A step under construction: what it contains so far, and what is left of budget, blocks and places."""

    def __init__(self, view: View, budget: int, *, watermark: float = 0.01) -> None:
        self.view = view
        self.room = budget
        self._budget = budget
        self._free = view.blocks.free
        self._reserve = int(watermark * view.blocks.total)
        self._chunks: list[Chunk] = []
        self._admitted: list[Seq] = []
        self._preempted: list[Seq] = []
        self._planned: set[int] = set()
        self._gone: set[int] = set()

    def running(self, *, decoding: bool) -> Iterator[Seq]:
        """Running sequences that can be planned now, oldest first; those preempted meanwhile are skipped."""
        for seq in self.view.running:
            if seq.decoding == decoding and not seq.busy and seq.id not in self._gone:
                yield seq

    def decode(self, seq: Seq) -> bool:
        """Plan one token; while blocks are short, preempt the youngest running sequence, at last this one.

        False if the sequence has to wait: it was preempted, or its blocks are with a step in flight.
        """
        if seq.id in self._gone:
            return False
        known = len(seq.tokens)
        need = self.view.blocks.needs(seq.id, known)
        while need > self._free:
            victim = self._youngest()
            if victim is None:
                return False
            self.preempt(victim)
            if victim is seq:
                return False
        self._free -= need
        self._add(seq, seq.computed, known - seq.computed)
        return True

    def extend(self, seq: Seq) -> None:
        """Plan the next chunk of a prompt whose blocks were reserved at admission."""
        count = min(seq.left, self.room)
        if count > 0:
            self._add(seq, seq.computed, count)

    def preempt(self, seq: Seq) -> None:
        """Free the sequence's blocks; it goes to the front of the queue and is recomputed later."""
        self._gone.add(seq.id)
        self._preempted.append(seq)
        self._free += self.view.blocks.gains(seq.id)

    def admit(self, seq: Seq, *, whole: bool = False) -> bool:
        """Admit the head of the queue with blocks for all its known tokens; False if it must wait.

        Nobody is admitted in a step that preempts: who was preempted is first in the queue.
        whole: plan all that is left of it in this step, whatever the budget, as engines without chunks do.
        """
        running = len(self.view.running) + len(self._admitted)
        if running >= self.view.limits.max_seqs or self._preempted:
            return False
        hit = self.view.blocks.peek(seq.tokens) if seq.request.prompt_logprobs is None else Hit([], 0)
        need = self.view.blocks.needs_new(hit, seq.known)
        if need > self._free - (self._reserve if running else 0):
            return False
        self._free -= need
        self._admitted.append(seq)
        left = seq.known - hit.num_tokens
        self._add(seq, hit.num_tokens, left if whole else min(left, self.room))
        return True

    def step(self) -> Step:
        return Step(
            chunks=self._chunks, admitted=self._admitted, preempted=self._preempted, budget=self._budget
        )

    def _add(self, seq: Seq, start: int, count: int) -> None:
        self._chunks.append(Chunk(seq, start, count))
        self._planned.add(seq.id)
        self.room -= count

    def _youngest(self) -> Seq | None:
        for seq in reversed(self.view.running):
            if not seq.busy and seq.id not in self._planned and seq.id not in self._gone:
                return seq
        return None
