"""Prefix groups (BatchLLM): a batch known in advance computes each shared prefix once.

Paper:  "BatchLLM: Optimizing Large Batched LLM Inference with Global Prefix Sharing and Throughput-oriented
        Token Batching", 2024
Idea:   of all prompts there, one shared prefix each, so that most tokens are saved; whoever comes first
        computes it, it is pinned until its group has ended; groups that decode most per prompt token go
        first, and as many sequences run as memory holds when they will need most
Shapes: View -> the inner scheduler's Step, the queue in order of groups
Cost:   grouping O(tokens + n log n + nodes x depth) when requests come; O(running log running) per step
Claims: batchllm
Differs: who is in the cache already when it comes is in no group and shares as usual. The keys and values of
        a prefix are read once for the decodes of its group where steps are simulated, for each otherwise
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from lightwork.errors import RangeError
from lightwork.memory.prefix import Hit
from lightwork.serve.schedulers import Pin, Scheduler, Step, View
from lightwork.serve.schedulers._peak import Peak
from lightwork.serve.schedulers._shared_prefixes import sharing
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Sequence as Seq


@dataclass(slots=True, eq=False)
class Group:
    """Sequences that share the first `prefix` tokens; 0 if there is only one.

    members: those that have not ended. waiting: those not running. leader: who computes the prefix.
    """

    name: int
    prefix: int
    members: list[Seq]
    waiting: deque[Seq]
    leader: Seq | None = None
    pinned: bool = False
    queued: bool = True

    def decode_share(self) -> float:
        """Tokens to generate per token of prompt to compute."""
        distinct = sum(seq.prompt_len - self.prefix for seq in self.members)
        return sum(seq.request.max_tokens for seq in self.members) / max(1, self.prefix + distinct)

    def ready(self) -> list[Seq]:
        """Members that may be admitted: one until the prefix is there, then all."""
        alive = [seq for seq in self.waiting if seq.finished is None]
        if not self.prefix or self.pinned:
            return alive
        return alive[:1] if self.leader is None else []


@dataclass(slots=True)
class State:
    """queue: groups with members that wait, in order. begun: by name, groups of which a member has run.

    of: the group of each sequence that has not ended. untold: who came since the inner scheduler was asked.
    """

    inner: Any
    queue: deque[Group] = field(default_factory=deque)
    begun: dict[int, Group] = field(default_factory=dict)
    of: dict[int, Group] = field(default_factory=dict)
    untold: list[Seq] = field(default_factory=list)
    names: Iterator[int] = field(default_factory=count)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixGroups:
    """memory: share of the KV blocks that the running may need at their predicted peak.

    decode_heavy_first=False: groups in the opposite order, to see what the order is worth.
    """

    inner: Scheduler[Any] = field(default_factory=Sarathi)
    memory: float = 0.95
    decode_heavy_first: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.memory <= 1:
            raise RangeError(
                f"PrefixGroups cannot fill memory={self.memory} of the blocks",
                expected="0 < memory <= 1",
                fix="PrefixGroups()",
            )

    def init(self) -> State:
        return State(self.inner.init())

    def plan(self, state: State, view: View) -> Step:
        if view.arrived:
            state.untold += view.arrived
            self._group(state, view)
        pins = _settle(state, view)
        if not pins.changes_nothing:
            return pins
        shares: dict[int, int] = {}
        waiting = self._in_order(state, view, shares)
        came, state.untold = state.untold, []
        step = self.inner.plan(state.inner, replace(view, waiting=waiting, shares=shares, arrived=came))
        for seq in step.admitted:
            group = state.of[seq.id]
            group.waiting.remove(seq)
            state.begun[group.name] = group
            if not group.pinned:
                group.leader = seq
        for seq in step.preempted:
            _send_back(state, seq)
        decoding = Counter(
            state.of[c.seq.id].name for c in step.chunks if c.count == 1 and c.seq.id in state.of
        )
        pinned = ((state.begun[name], num) for name, num in decoding.items() if name in state.begun)
        step.shared = [(group.prefix, num) for group, num in pinned if group.pinned and num > 1]
        return step

    def _group(self, state: State, view: View) -> None:
        """Who came; a sequence that was preempted by another technique goes back to its group."""
        come = []
        for seq in view.arrived:
            if seq.id in state.of:
                _send_back(state, seq)
            elif seq.finished is None:
                come.append(seq)
        alone = dict.fromkeys(come)
        groups = []
        for prefix, seqs in sharing(come, view.blocks.block_size):
            members = [seq for seq in seqs if _cached(view, seq).num_tokens < prefix]
            if len(members) > 1:
                groups.append(Group(next(state.names), prefix, members, deque(members)))
                for seq in members:
                    del alone[seq]
        groups += [Group(next(state.names), 0, [seq], deque([seq])) for seq in alone]
        state.of.update((seq.id, group) for group in groups for seq in group.members)
        order = sorted([*state.queue, *groups], key=Group.decode_share, reverse=self.decode_heavy_first)
        state.queue = deque(order)

    def _in_order(self, state: State, view: View, shares: dict[int, int]) -> Iterator[Seq]:
        """The queue as the inner scheduler sees it, up to where memory would be short.

        shares: gains what each of those may share.
        """
        if not state.queue:
            return
        pinned = sum(group.prefix for group in state.begun.values() if group.pinned)
        peak = Peak(view.blocks.block_size, pinned)
        for seq in view.running:
            running = state.of.get(seq.id)
            peak.add(seq.known - (running.prefix if running and running.pinned else 0), seq.output_left)
        limit = self.memory * view.blocks.total
        for group in state.queue:
            shared = group.prefix if group.pinned else 0
            for seq in group.ready():
                if len(peak) and peak.blocks_with(seq.known - shared, seq.output_left) > limit:
                    return
                peak.add(seq.known - shared, seq.output_left)
                if group.prefix:
                    shares[seq.id] = shared
                yield seq


def _cached(view: View, seq: Seq, limit: int | None = None) -> Hit:
    return view.blocks.peek(seq.tokens, limit, seq.request.model)


def _send_back(state: State, seq: Seq) -> None:
    group = state.of[seq.id]
    group.waiting.appendleft(seq)
    if not group.queued:
        group.queued = True
        state.queue.appendleft(group)


def _settle(state: State, view: View) -> Step:
    """Forget who has ended; a step that pins prefixes that are there now, and lets go of those not needed."""
    step = Step()
    while state.queue and all(seq.finished for seq in state.queue[0].waiting):
        group = state.queue.popleft()
        group.queued = False
        _forget_ended(state, group)
    for group in [*state.begun.values()]:
        _forget_ended(state, group)
        if not group.members:
            del state.begun[group.name]
        keep = bool(group.members) and (bool(view.running) or _is_next(state, view, group))
        if group.pinned and not keep:
            group.pinned = False
            step.unpins.append(group.name)
        elif group.prefix and not group.pinned and keep:
            first = group.members[0]
            if _cached(view, first, group.prefix).num_tokens == group.prefix:
                group.pinned = True
                step.pins.append(Pin(group.name, first.tokens[: group.prefix], first.request.model))
        if group.leader is not None and (group.leader.finished or group.leader in group.waiting):
            group.leader = None
    return step


def _is_next(state: State, view: View, group: Group) -> bool:
    """Whether the next in the queue is of this group and fits beside its prefix, to its last token.

    When nobody runs, the prefixes of others must not keep it from running.
    """
    if not state.queue or state.queue[0] is not group:
        return False
    seq = next(seq for seq in group.waiting if not seq.finished)
    hit = _cached(view, seq, group.prefix)
    return view.blocks.needs_new(hit, seq.known + seq.output_left) <= view.blocks.free


def _forget_ended(state: State, group: Group) -> None:
    for seq in group.members:
        if seq.finished:
            del state.of[seq.id]
    group.members = [seq for seq in group.members if not seq.finished]
