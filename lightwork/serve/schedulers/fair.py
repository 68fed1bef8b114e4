"""Fair: among tenants that want more, each is served as much, whoever sends most.

Paper:  "Fairness in Serving Large Language Models", 2023 (virtual token counters); what "FastSwitch:
        Optimizing Context Switching Efficiency in Fairness-aware Large Language Model Serving", 2024, is for
Idea:   a tenant's counter grows with its prompt tokens computed and its output tokens; the queue offers the
        request of the lowest counter first. Who returns from idleness starts at the lowest of the active, so
        nothing is saved up
Shapes: View -> the inner scheduler's Step, the queue in order of counters
Cost:   O(chunks + admitted log tenants) per step
Claims: fastswitch
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from typing import Any

from lightwork.errors import RangeError
from lightwork.serve.schedulers import Scheduler, Step, View
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Sequence as Seq


@dataclass(slots=True)
class State:
    """queues: who waits, by tenant, in order. served: the counters."""

    inner: Any
    queues: dict[str, deque[Seq]] = field(default_factory=dict)
    served: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fair:
    """output_weight: what an output token counts, in prompt tokens (the paper: 2)."""

    inner: Scheduler[Any] = field(default_factory=Sarathi)
    output_weight: float = 2.0

    def __post_init__(self) -> None:
        if self.output_weight <= 0:
            raise RangeError(
                f"Fair cannot count output_weight={self.output_weight}",
                expected="output_weight > 0",
                fix="Fair()",
            )

    def init(self) -> State:
        return State(self.inner.init())

    def plan(self, state: State, view: View) -> Step:
        _queue(state, view)
        step = self.inner.plan(state.inner, replace(view, waiting=_lowest_first(state)))
        for seq in step.admitted:
            state.queues[seq.request.tenant].remove(seq)
        for seq in step.preempted:
            state.queues[seq.request.tenant].appendleft(seq)
        for chunk in step.chunks:
            tokens = self.output_weight if chunk.seq.decoding else float(chunk.count)
            state.served[chunk.seq.request.tenant] += tokens
        return step


def _queue(state: State, view: View) -> None:
    """Take in who came, and lift the counters of tenants that had nothing to do."""
    for queue in state.queues.values():
        while queue and queue[0].finished:
            queue.popleft()
    active = {seq.request.tenant for seq in view.running} | {t for t, queue in state.queues.items() if queue}
    for seq in view.arrived:
        tenant = seq.request.tenant
        if tenant not in active:
            floor = min((state.served[t] for t in active), default=max(state.served.values(), default=0.0))
            state.served[tenant] = max(state.served.get(tenant, 0.0), floor)
            active.add(tenant)
        state.queues.setdefault(tenant, deque()).append(seq)


def _lowest_first(state: State) -> Iterator[Seq]:
    """The queue, as if each prompt offered had been served already."""
    heap = [(state.served[tenant], tenant) for tenant, queue in state.queues.items() if queue]
    heapify(heap)
    offered: Counter[str] = Counter()
    while heap:
        served, tenant = heappop(heap)
        queue = state.queues[tenant]
        while offered[tenant] < len(queue) and queue[offered[tenant]].finished:
            offered[tenant] += 1
        if offered[tenant] == len(queue):
            continue
        seq = queue[offered[tenant]]
        offered[tenant] += 1
        heappush(heap, (served + seq.left, tenant))
        yield seq
