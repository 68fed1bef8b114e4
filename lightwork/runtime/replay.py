"""The times of a recorded graph, worked out by compiled loops (numba, imported when first used).

In order of issue: each operation is served after those recorded before it. One pass and no heap, right where
no resource is shared between ranks. In order of readiness: resources serve whoever is ready first, as in the
event simulation; ties go to who was recorded first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from heapq import heappop, heappush
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import DeadlockError, MissingExtraError
from lightwork.runtime.record import Graph

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """When each operation began to be served and when it was done; makespan_s: when the last one was."""

    begin_s: Floats
    done_s: Floats
    makespan_s: float


def replay(
    graph: Graph, order: Literal["issue", "ready"] = "ready", *, amount_s: Floats | None = None
) -> Times:
    """The times of a graph. amount_s: other amounts than the recorded ones, to try many on one recording.

    Raises MissingExtraError without numba.
    """
    in_issue_order, when_ready, followers = _compiled()
    n = len(graph)
    times_s = (np.zeros(n), np.zeros(n))
    amounts = graph.amount_s if amount_s is None else np.ascontiguousarray(amount_s, dtype=np.float64)
    free_s = np.zeros(len(graph.resources))
    served = (graph.resource, amounts, graph.latency_s)
    if order == "issue":
        count = in_issue_order(*served, graph.first, graph.after, free_s, times_s)
    else:
        starts, then = np.zeros(n + 1, np.int64), np.empty(len(graph.after), np.int64)
        followers(graph.first, graph.after, starts, then)
        count = when_ready(*served, np.diff(graph.first), starts, then, free_s, times_s)
    if count != n:
        raise DeadlockError(f"{n - count} of {n} operations never become ready", expected="no cycles")
    return Times(begin_s=times_s[0], done_s=times_s[1], makespan_s=float(times_s[1].max()) if n else 0.0)


def _in_issue_order(
    resource: Any, amount_s: Any, latency_s: Any, first: Any, after: Any, free_s: Any, times_s: Any
) -> int:
    begin_s, done_s = times_s
    edge = 0
    for i in range(len(resource)):
        start = 0.0
        while edge < first[i + 1]:
            start = max(start, done_s[after[edge]])
            edge += 1
        r = resource[i]
        if r >= 0:
            start = max(start, free_s[r])
            free_s[r] = start + amount_s[i]
        begin_s[i] = start
        done_s[i] = start + amount_s[i] + latency_s[i]
    return len(resource)


def _followers(first: Any, after: Any, starts: Any, then: Any) -> None:
    """The reverse of `after`: operation i is followed by then[starts[i]:starts[i + 1]]."""
    for k in range(len(after)):
        starts[after[k] + 1] += 1
    for i in range(len(starts) - 1):
        starts[i + 1] += starts[i]
    fill = starts.copy()
    for i in range(len(first) - 1):
        for k in range(first[i], first[i + 1]):
            then[fill[after[k]]] = i
            fill[after[k]] += 1


def _when_ready(
    resource: Any,
    amount_s: Any,
    latency_s: Any,
    missing: Any,
    starts: Any,
    then: Any,
    free_s: Any,
    times_s: Any,
) -> int:
    begin_s, done_s = times_s
    ready_s = np.zeros(len(resource))
    heap = [(0.0, 0, 0)][:0]
    sequence = 0
    for i in range(len(resource)):
        if missing[i] == 0:
            heappush(heap, (0.0, sequence, i))
            sequence += 1
    count = 0
    while len(heap) > 0:
        start, _, i = heappop(heap)
        count += 1
        r = resource[i]
        if r >= 0:
            start = max(start, free_s[r])
            free_s[r] = start + amount_s[i]
        begin_s[i] = start
        done = start + amount_s[i] + latency_s[i]
        done_s[i] = done
        for k in range(starts[i], starts[i + 1]):
            j = then[k]
            ready_s[j] = max(ready_s[j], done)
            missing[j] -= 1
            if missing[j] == 0:
                heappush(heap, (ready_s[j], sequence, j))
                sequence += 1
    return count


@cache
def _compiled() -> tuple[Callable[..., int], Callable[..., int], Callable[..., None]]:
    try:
        import numba
    except ImportError:
        raise MissingExtraError("numba", "cpu") from None
    jit = numba.njit(cache=True, nogil=True)
    return jit(_in_issue_order), jit(_when_ready), jit(_followers)
