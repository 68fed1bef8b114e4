"""Who can do work: `Fifo` (served in order), `Fair` (shared bandwidth), `Store` (capacity).

A stream, a core, a copy engine, a DRAM bank or an endpoint slot is a Fifo; memory bandwidth and links are
Fair; memory, buffers and KV blocks are Stores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from heapq import heapreplace
from math import inf
from typing import TYPE_CHECKING, Any

from lightwork.errors import RangeError

if TYPE_CHECKING:
    from lightwork.runtime.futures import Task
    from lightwork.runtime.kernel import Kernel


class Fifo:
    """Servers that take one use at a time, in order of arrival. Amounts are seconds of service.

    The end of a use is known when it arrives, so a use costs one event.
    """

    __slots__ = ("_free_at_s", "busy_s", "name")

    def __init__(self, name: str, servers: int = 1) -> None:
        if servers < 1:
            raise RangeError(f"Fifo {name!r} has {servers} servers", expected="at least 1")
        self.name = name
        self.busy_s = 0.0
        self._free_at_s = [0.0] * servers

    def reserve(self, now_s: float, amount: float) -> float:
        """Join the queue for `amount` seconds of service; returns when they will have been given."""
        if not 0.0 <= amount < inf:
            _positive(self.name, amount)
        free = self._free_at_s
        end_s = (free[0] if free[0] > now_s else now_s) + amount
        if len(free) == 1:
            free[0] = end_s
        else:
            heapreplace(free, end_s)
        self.busy_s += amount
        return end_s

    def use(self, kernel: Kernel, amount: float, done: Callable[..., Any], *args: Any) -> None:
        """Call done(*args) when `amount` seconds of service have been given."""
        kernel.at(self.reserve(kernel.now(), amount), done, *args)

    def __repr__(self) -> str:
        return f"Fifo({self.name!r})"


class Fair:
    """Bandwidth that flows share at max-min rates. Amounts are bytes (or any unit, per second)."""

    __slots__ = ("bytes_per_s", "flows", "name")

    def __init__(self, name: str, bytes_per_s: float) -> None:
        if not bytes_per_s > 0:
            raise RangeError(f"Fair {name!r} has {bytes_per_s} bytes per second", expected="a positive rate")
        self.name = name
        self.bytes_per_s = bytes_per_s
        self.flows: dict[Flow, None] = {}

    def use(self, kernel: Kernel, amount: float, done: Callable[..., Any], *args: Any) -> None:
        """Call done(*args) when `amount` bytes have passed."""
        transfer(kernel, (self,), amount, done, *args)

    def retune(self, kernel: Kernel, bytes_per_s: float) -> None:
        """What passes from now on, also of what is on its way. Raises RangeError unless that is positive."""
        if not bytes_per_s > 0:
            raise RangeError(
                f"{self!r} is tuned to {bytes_per_s} bytes per second", expected="a positive rate"
            )
        self.bytes_per_s = bytes_per_s
        _share(kernel, (self,))

    def __repr__(self) -> str:
        return f"Fair({self.name!r})"


class Flow:
    """Bytes on their way through a path of Fair resources, at one rate that changes as flows come and go."""

    __slots__ = ("args", "done", "left", "path", "rate", "since_s", "timer")

    def __init__(
        self,
        path: Sequence[Fair],
        amount: float,
        now_s: float,
        done: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        self.path = path
        self.left = amount
        self.since_s = now_s
        self.rate = 0.0
        self.timer = 0
        self.done = done
        self.args = args


def transfer(
    kernel: Kernel, path: Sequence[Fair], amount: float, done: Callable[..., Any], *args: Any
) -> None:
    """Call done(*args) when `amount` bytes have passed along the whole path at max-min fair rates."""
    _positive("/".join(fair.name for fair in path), amount)
    flow = Flow(tuple(path), amount, kernel.now(), done, args)
    for fair in flow.path:
        fair.flows[flow] = None
    _share(kernel, flow.path)


def max_min_rates(flows: Sequence[Sequence[Any]], capacity: dict[Any, float]) -> list[float]:
    """Max-min fair rates by progressive filling (Bertsekas and Gallager, "Data Networks", section 6.5).

    flows: the resources each flow passes. capacity: of each resource. Returns one rate per flow.
    """
    rates = [inf] * len(flows)
    left = dict(capacity)
    crossing = {r: [i for i, path in enumerate(flows) if r in path] for r in left}
    while True:
        open_flows = {r: [i for i in ids if rates[i] == inf] for r, ids in crossing.items()}
        shares = {r: left[r] / len(ids) for r, ids in open_flows.items() if ids}
        if not shares:
            return rates
        tightest = min(shares, key=shares.__getitem__)
        rate = shares[tightest]
        for i in open_flows[tightest]:
            rates[i] = rate
            for r in set(flows[i]):
                left[r] -= rate


def _share(kernel: Kernel, changed: Sequence[Fair]) -> None:
    """New rates for all flows connected with the changed resources; flows elsewhere are not touched."""
    now_s = kernel.now()
    fairs: dict[Fair, None] = {}
    flows: dict[Flow, None] = {}
    todo = list(changed)
    while todo:
        fair = todo.pop()
        if fair in fairs:
            continue
        fairs[fair] = None
        for flow in fair.flows:
            if flow not in flows:
                flows[flow] = None
                todo.extend(flow.path)
    ordered = list(flows)
    rates = max_min_rates([flow.path for flow in ordered], {fair: fair.bytes_per_s for fair in fairs})
    for flow, rate in zip(ordered, rates, strict=True):
        if rate == flow.rate:
            continue
        flow.left -= flow.rate * (now_s - flow.since_s)
        flow.since_s = now_s
        flow.rate = rate
        if flow.timer:
            kernel.drop(flow.timer)
        flow.timer = kernel.at(now_s + max(0.0, flow.left) / rate, _arrived, kernel, flow)


def _arrived(kernel: Kernel, flow: Flow) -> None:
    for fair in flow.path:
        fair.flows.pop(flow, None)
    _share(kernel, flow.path)
    kernel.call_soon(flow.done, *flow.args)


class Store:
    """Capacity that is taken and given back; those who want more than there is wait in order of arrival."""

    __slots__ = ("_queue", "capacity", "level", "name")

    def __init__(self, name: str, capacity: float) -> None:
        if not capacity > 0:
            raise RangeError(f"Store {name!r} has capacity {capacity}", expected="a positive capacity")
        self.name = name
        self.capacity = capacity
        self.level = capacity
        self._queue: deque[tuple[float, Task]] = deque()

    def acquire(self, kernel: Kernel, amount: float, task: Task) -> None:
        """Resume the task when `amount` has been taken for it. Raises RangeError if it can never be."""
        _positive(self.name, amount)
        if amount > self.capacity:
            raise RangeError(f"{amount:g} wanted of {self.name!r}", expected=f"at most {self.capacity:g}")
        self._queue.append((amount, task))
        self._serve(kernel)

    def release(self, kernel: Kernel, amount: float) -> None:
        """Give back. Raises RangeError if that is more than was taken."""
        _positive(self.name, amount)
        if self.level + amount > self.capacity * (1 + 1e-12):
            raise RangeError(f"{amount:g} given back to {self.name!r}", expected="no more than was taken")
        self.level += amount
        self._serve(kernel)

    def _serve(self, kernel: Kernel) -> None:
        queue = self._queue
        while queue and (queue[0][1].done or queue[0][1].cancelled or queue[0][0] <= self.level):
            amount, task = queue.popleft()
            if not task.done and not task.cancelled:
                self.level -= amount
                kernel.resume(task)

    def __repr__(self) -> str:
        return f"Store({self.name!r}, {self.capacity:g})"


def _positive(name: str, amount: float) -> None:
    if not 0.0 <= amount < inf:
        raise RangeError(f"{amount} wanted of {name!r}", expected="a finite amount of at least 0")
