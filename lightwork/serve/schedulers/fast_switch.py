"""FastSwitch: priorities change while requests run, and who ranks highest runs.

Paper:  "FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware Large Language Model
        Serving", 2024
Idea:   every so many steps priorities are drawn anew; the sequences of highest priority that fit into the
        blocks run, the others give theirs up and go on when it is their turn. With HostMemory and BlockGroups
        a turn costs a copy that overlaps with steps, without them the sequence is computed again
Shapes: View -> the inner scheduler's Step, the queue by priority, or a Step that preempts
Cost:   O(waiting log waiting) per step, O(sequences log sequences) per change
Claims: fastswitch
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from lightwork.errors import RangeError
from lightwork.memory.prefix import NO_HIT
from lightwork.serve.schedulers import Scheduler, Step, View
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Sequence as Seq


@dataclass(slots=True)
class State:
    """priorities: by sequence id, 0 to 1, of `seqs`. changed: how often they have. steps: since they last
    did.

    untold: who came, or was preempted here, since the inner scheduler was asked.
    """

    inner: Any
    seqs: dict[int, Seq] = field(default_factory=dict)
    priorities: dict[int, float] = field(default_factory=dict)
    untold: list[Seq] = field(default_factory=list)
    changed: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FastSwitch:
    """Priorities by a trace.

    every: steps between changes, one over the publication's frequency. stay: the share of sequences that
    keep their priority then, so who runs tends to go on (the publication's Markov pattern); 0: all are
    drawn (its Random). seed: of the draws.
    """

    inner: Scheduler[Any] = field(default_factory=Sarathi)
    every: int = 25
    stay: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 <= self.stay <= 1:
            raise RangeError(
                f"FastSwitch cannot run every={self.every}, stay={self.stay}",
                expected="every >= 1 and stay from 0 to 1",
                fix="FastSwitch(every=25, stay=0.5)",
            )

    def init(self) -> State:
        return State(self.inner.init())

    def plan(self, state: State, view: View) -> Step:
        state.untold += view.arrived
        waiting = self._ranked(state, view.waiting)
        if state.steps >= self.every:
            state.steps = 0
            self._change(state)
            if preempted := outranked(view, self._ranked(state, (*view.running, *waiting))):
                state.untold += preempted
                return Step(preempted=preempted)
            waiting = self._ranked(state, waiting)
        came, state.untold = state.untold, []
        step = self.inner.plan(state.inner, replace(view, waiting=waiting, arrived=came))
        state.steps += bool(step.chunks)
        return step

    def _change(self, state: State) -> None:
        state.changed += 1
        state.seqs = {id: seq for id, seq in state.seqs.items() if seq.finished is None}
        state.priorities = {id: self._next(state, id) for id in state.seqs}

    def _next(self, state: State, id: int) -> float:
        """The priority of a sequence after a change."""
        if self._draw(id, "stay", state.changed) < self.stay:
            return state.priorities[id]
        return self._draw(id, "priority", state.changed)

    def _draw(self, id: int, what: str, number: int) -> float:
        """A number from 0 to 1 that depends on nothing else."""
        text = f"{self.seed} {id} {what} {number}".encode()
        return int.from_bytes(blake2b(text, digest_size=8).digest()) / 2**64

    def _ranked(self, state: State, seqs: Iterable[Seq]) -> list[Seq]:
        found = list(seqs)
        for seq in found:
            if seq.id not in state.priorities:
                state.seqs[seq.id] = seq
                state.priorities[seq.id] = self._draw(seq.id, "priority", 0)
        return sorted(found, key=lambda seq: -state.priorities[seq.id])


def outranked(view: View, ranked: Iterable[Seq]) -> list[Seq]:
    """Running sequences that are not among the first of `ranked`, as many as fit; none if nobody takes
    their place.

    Those that a step or a copy in flight contains are left alone.
    """
    room, places = view.blocks.total - view.blocks.headroom(0.01), view.limits.max_seqs
    first: set[int] = set()
    for seq in ranked:
        room -= view.blocks.needs_new(NO_HIT, seq.known)
        if room < 0 or len(first) == places:
            break
        first.add(seq.id)
    if len(first) <= sum(seq.id in first for seq in view.running):
        return []
    return [seq for seq in view.running if seq.id not in first and not seq.busy]
