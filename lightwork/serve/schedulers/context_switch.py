"""ContextSwitch: a few sequences compute at once and change places in the middle of their texts.

Paper:  "AIOS: LLM Agent Operating System", 2024
Idea:   a policy of queues gives the engine's places in turns. Whose turn is over keeps its blocks while
        nobody needs them (keep), or gives them up: to host memory where there is a HostMemory, else they are
        computed again. Either way it goes on from the very token, so no text depends on the turns
Shapes: View -> the inner scheduler's Step over those who have a place, or a Step that preempts
Cost:   O(sequences) per step, O(sequences log sequences) when somebody comes, goes or changes places
Claims: aios
Differs: the state that is kept is the KV itself, and a turn counts the tokens of all of its steps
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from lightwork.errors import RangeError
from lightwork.runtime.queue_policies import QueuePolicy, Turn
from lightwork.runtime.queue_policies.round_robin import RoundRobin
from lightwork.serve.schedulers import Scheduler, Step, View
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Sequence as Seq


@dataclass(slots=True)
class State:
    """turns: by sequence id, of all that have not ended. begun: of those who have a place, output tokens and
    time when they were given it. queue: who has none, the next first, as long as those who are `there` are
    the same and it is not stale. untold: who came, or was preempted here, since the inner scheduler was
    asked.
    """

    inner: Any
    seqs: dict[int, Seq] = field(default_factory=dict)
    turns: dict[int, Turn] = field(default_factory=dict)
    begun: dict[int, tuple[int, float]] = field(default_factory=dict)
    queue: list[Seq] = field(default_factory=list)
    there: tuple[list[Seq], list[Seq]] = field(default_factory=lambda: ([], []))
    stale: bool = True
    untold: list[Seq] = field(default_factory=list)
    joins: int = 0

    def join(self) -> int:
        self.joins += 1
        return self.joins


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSwitch:
    """policy: who computes, and how long. places: sequences that compute at once. keep=False: blocks are
    given up at the end of every turn, not only when somebody else needs them.
    """

    inner: Scheduler[Any] = field(default_factory=Sarathi)
    policy: QueuePolicy = field(default_factory=RoundRobin)
    places: int = 1
    keep: bool = True

    def __post_init__(self) -> None:
        if self.places < 1:
            raise RangeError(
                f"ContextSwitch cannot run places={self.places}",
                expected="places >= 1",
                fix="ContextSwitch(places=1)",
            )

    def init(self) -> State:
        return State(self.inner.init())

    def plan(self, state: State, view: View) -> Step:
        state.untold += view.arrived
        queue = self._queue(state, view)
        mine = [seq for seq in view.running if seq.id in state.begun and seq.finished is None]
        if ended := self._over(state, mine, queue, view.now_s):
            for seq in ended:
                del state.begun[seq.id]
                state.turns[seq.id].joined = state.join()
            state.stale = True
            if not self.keep:
                return _give_up(state, ended)
            mine = [seq for seq in mine if seq.id in state.begun]
            queue = self._queue(state, view)
        chosen = _first(queue, self.places - len(mine))
        came = {seq.id for seq in view.running}
        back = [seq for seq in chosen if seq.id in came]
        new = [seq for seq in chosen if seq.id not in came]
        if victims := _short(view, [*mine, *back], new, queue, came):
            return _give_up(state, victims)
        for seq in back:
            state.begun[seq.id] = seq.num_output, view.now_s
            state.stale = True
        arrived, state.untold = state.untold, []
        inside = replace(view, running=[*mine, *back], waiting=new, arrived=arrived)
        step = self.inner.plan(state.inner, inside)
        paused = [seq for seq in queue if seq.id in came and seq.id not in state.begun and not seq.busy]
        if step.changes_nothing and not inside.running and paused:
            return _give_up(state, paused[-1:])  # blocks that the paused share are nobody's gain alone
        for seq in step.preempted:
            state.begun.pop(seq.id, None)
        for seq in step.admitted:
            state.begun[seq.id] = seq.num_output, view.now_s
        return step

    def _queue(self, state: State, view: View) -> list[Seq]:
        """Who has no place, the next first; ranked anew only when it may have changed."""
        there = [*view.waiting], [*view.running]
        if state.stale or view.arrived or there != state.there:
            _take_in(state, view)
            found = [s for s in (*there[1], *there[0]) if s.id not in state.begun and s.finished is None]
            state.queue = sorted(found, key=lambda seq: self.policy.rank(state.turns[seq.id]))
            state.there, state.stale = there, False
        return state.queue

    def _over(self, state: State, mine: Sequence[Seq], queue: Sequence[Seq], now_s: float) -> list[Seq]:
        """Whose turn is over: as many as there are others who wait for a place.

        No turn ends before it has brought a token, so that everybody gets on however short memory is.
        """
        ended: list[Seq] = []
        wait = _first(queue, self.places)[max(0, self.places - len(mine)) :]
        for seq in mine:
            if len(ended) == len(wait):
                break
            turn, (tokens, since_s) = state.turns[seq.id], state.begun[seq.id]
            turn.tokens, turn.seconds = seq.num_output - tokens, now_s - since_s
            stays = seq.output_left <= 0 or not turn.tokens or (seq.busy and not self.keep)
            if not stays and self.policy.over(turn, state.turns[wait[len(ended)].id]):
                ended.append(seq)
        return ended


def _first(queue: Iterable[Seq], most: int) -> list[Seq]:
    """Of those who have not ended."""
    return [*islice((seq for seq in queue if seq.finished is None), max(0, most))]


def _take_in(state: State, view: View) -> None:
    """Turns for who came; nothing is kept of who has ended."""
    for seq in view.arrived:
        state.begun.pop(seq.id, None)  # a technique around this one has taken its blocks
        if seq.id not in state.turns and seq.finished is None:
            number = state.join()
            state.turns[seq.id] = Turn(number, number, seq.request.priority)
            state.seqs[seq.id] = seq
    for seq in [seq for seq in state.seqs.values() if seq.finished is not None]:
        del state.seqs[seq.id], state.turns[seq.id]
        state.begun.pop(seq.id, None)


def _give_up(state: State, seqs: list[Seq]) -> Step:
    state.untold += seqs
    return Step(preempted=seqs, requeue="back")


def _short(
    view: View, mine: Sequence[Seq], new: Sequence[Seq], queue: Sequence[Seq], running: Collection[int]
) -> list[Seq]:
    """Paused sequences, the last in the queue first, whose blocks or places are needed by who has a turn."""
    blocks, victims = view.blocks, []
    turns = {seq.id for seq in mine}
    paused = len(running) > len(mine)
    left = [s for s in queue if paused and s.id in running and s.id not in turns and not s.busy]
    room = blocks.free - sum(blocks.needs(seq.id, seq.known) for seq in mine)
    places = view.limits.max_seqs - len(running)

    def give_way() -> None:
        nonlocal room, places
        victims.append(left.pop())
        room += blocks.gains(victims[-1].id)
        places += 1

    while room < 0 and left:
        give_way()
    reserve = blocks.headroom(0.01) if mine else 0
    for seq in new:
        hit = blocks.peek(seq.tokens, view.shares.get(seq.id), seq.request.model)
        need = blocks.needs_new(hit, seq.known)
        most = room + sum(blocks.gains(one.id) for one in left)
        if need + reserve > most or places + len(left) < 1:
            break
        while need + reserve > room or places < 1:
            give_way()
        room, places = room - need, places - 1
    return victims
