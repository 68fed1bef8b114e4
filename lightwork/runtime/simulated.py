"""The world whose effects take as long as a price says.

Ranks are coroutines on a kernel with a virtual clock. `Meta` stands for a tensor by its shape; arrays travel
as copies, so a strategy can be checked by value on hundreds of simulated ranks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from lightwork.errors import DeadlockError, InvariantError, LightworkError, RangeError, SpecError
from lightwork.runtime.effects import Collective, Compute, Effect, Meta, Move, Price, Recv, Send
from lightwork.runtime.futures import Task
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.resources import Fair, Fifo, transfer
from lightwork.runtime.trace import Span

Pricer = Callable[[Effect, int], Price]
"""(effect, rank) -> its price; that of a collective is asked once, with what all members gave, in a list."""
Then = Callable[[float], None]
Doing = tuple[str, str, float, Any, object]
"""Of a span that has not ended: kind, name, start, data and peer."""


class SimWorld:
    """Ranks whose Compute, Move, Send, Recv and Collective let virtual time pass.

    price: (effect, rank) -> its Price. resources: who serves the demands, by name. execute: call the
    functions of Compute too, for strategies that are checked by value.
    """

    def __init__(
        self, kernel: Kernel, price: Pricer, resources: Mapping[str, Fifo | Fair], *, execute: bool = False
    ) -> None:
        self.kernel = kernel
        self.price = price
        self.resources = resources
        self.execute = execute
        self.tasks: list[Task] = []
        self._ranks: dict[int, _Rank] = {}
        self._meetings: dict[tuple[tuple[int, ...], int], _Meeting] = {}

    def launch(self, rank: int, coro: Coroutine[Any, Any, Any]) -> Task:
        """Start a strategy on a rank."""
        task = self.kernel.spawn(coro, name=f"rank {rank}", world=self.rank(rank))
        self.tasks.append(task)
        return task

    def run(self) -> list[Any]:
        """Run all that was launched to its end; returns the values in order of launch.

        Raises DeadlockError, naming ranks, if they wait for each other.
        """
        values: list[Any] = self.kernel.run(self.kernel.gather(*self.tasks))
        return values

    def rank(self, rank: int) -> _Rank:
        found = self._ranks.get(rank)
        if found is None:
            found = self._ranks[rank] = _Rank(self, rank)
        return found

    def reserve(self, price: Price, now_s: float) -> float:
        """When a price of at most one Fifo will have been served, known at once; else -1."""
        demands = price.demands
        if not demands:
            return now_s
        if len(demands) == 1:
            path, amount = demands[0]
            fifo = self.resources.get(path[0])
            if isinstance(fifo, Fifo):
                return fifo.reserve(now_s, amount)
        return -1.0

    def serve(self, price: Price, then: Then) -> None:
        """Serve demands side by side; then(latency_s) when the last has been served."""
        end_s = now_s = self.kernel.now()
        paths: list[tuple[tuple[Fair, ...], float]] = []
        for path, amount in price.demands:
            first = self._resource(path[0])
            if isinstance(first, Fifo):
                end_s = max(end_s, first.reserve(now_s, amount))
            else:
                paths.append((tuple(self._fair(name) for name in path), amount))
        latency_s = price.latency_s
        if not paths:
            if end_s == now_s:
                then(latency_s)
            else:
                self.kernel.at(end_s, then, latency_s)
            return
        left = len(paths) + (end_s > now_s)

        def served() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                then(latency_s)

        if end_s > now_s:
            self.kernel.at(end_s, served)
        for fairs, amount in paths:
            transfer(self.kernel, fairs, amount, served)

    def meet(self, rank: _Rank, task: Task, effect: Collective) -> None:
        """Enter a collective; the last to come starts it for all."""
        if rank.id not in effect.group:
            raise SpecError(
                f"rank {rank.id} enters a collective of {_ranks(effect.group)}", expected="a member"
            )
        turn = rank.entered.get(effect.group, 0)
        rank.entered[effect.group] = turn + 1
        key = (effect.group, turn)
        meeting = self._meetings.setdefault(key, _Meeting(effect.kind))
        if meeting.kind != effect.kind:
            raise DeadlockError(
                f"rank {rank.id} enters {effect.kind}, but {_ranks([*meeting.came])} entered {meeting.kind}",
                expected=f"the same collectives, in the same order, on all ranks of {_ranks(effect.group)}",
            )
        meeting.came[rank.id] = (task, effect, self.kernel.now())
        if len(meeting.came) == len(effect.group):
            del self._meetings[key]
            given = [meeting.came[r][1].x for r in effect.group]
            price = self.price(Collective(effect.kind, effect.group, given), effect.group[0])
            self.serve(price, lambda latency_s: self._part(meeting, effect.group, latency_s))

    def missing(self, effect: Collective) -> list[int]:
        """The ranks that have not entered a collective that others wait in."""
        for (group, _), meeting in self._meetings.items():
            if group == effect.group and any(e is effect for _, e, _ in meeting.came.values()):
                return [r for r in group if r not in meeting.came]
        return []

    def _part(self, meeting: _Meeting, group: tuple[int, ...], latency_s: float) -> None:
        end_s = self.kernel.now() + latency_s
        given = [meeting.came[r][1].x for r in group]
        for i, r in enumerate(group):
            task, effect, start_s = meeting.came[r]
            span: Doing = ("collective", effect.kind, start_s, effect.x, "")
            self.rank(r).ends(task, _result(effect.kind, given, i), end_s, span)

    def _resource(self, name: str) -> Fifo | Fair:
        try:
            return self.resources[name]
        except KeyError:
            raise SpecError(
                f"a price names the resource {name!r}", expected=", ".join(sorted(self.resources)[:8])
            ) from None

    def _fair(self, name: str) -> Fair:
        found = self._resource(name)
        if not isinstance(found, Fair):
            raise SpecError(f"a path passes {name!r}, a Fifo", expected="a path of Fair resources only")
        return found


class _Meeting:
    """A collective that its members are entering."""

    __slots__ = ("came", "kind")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.came: dict[int, tuple[Task, Collective, float]] = {}


class _Rank:
    """One rank of a SimWorld: the world of its tasks."""

    __slots__ = ("_mail", "_readers", "_world", "entered", "id", "name", "scope")

    def __init__(self, world: SimWorld, rank: int) -> None:
        self._world = world
        self.scope: object = world
        self.id = rank
        self.name = str(rank)
        self.entered: dict[tuple[int, ...], int] = {}
        self._mail: dict[tuple[int, int], deque[tuple[float, Any]]] = {}
        self._readers: dict[tuple[int, int], deque[tuple[Task, Recv, float]]] = {}

    def perform(self, task: Task, effect: Effect) -> None:
        do = _PERFORM.get(type(effect))
        if do is None:
            raise InvariantError(f"{effect!r} is of no simulated world", expected="see effects.py")
        try:
            do(self, task, effect)
        except LightworkError as error:
            self._world.kernel.refuse(task, error)

    def explain(self, effect: Any) -> str:
        if isinstance(effect, Recv):
            return f"a message of rank {effect.source}, tag {effect.tag}"
        if isinstance(effect, Collective):
            return f"{effect.kind} of {_ranks(effect.group)}: missing {_ranks(self._world.missing(effect))}"
        return ""

    def _compute(self, task: Task, effect: Compute) -> None:
        value = effect.args[0] if effect.args else None
        if self._world.execute and effect.fn is not None:
            value = effect.fn(*effect.args)
        self._take(task, effect, ("compute", effect.name, self._world.kernel.now(), None, ""), value)

    def _move(self, task: Task, effect: Move) -> None:
        span = ("move", f"{effect.src} to {effect.dst}", self._world.kernel.now(), effect.x, "")
        self._take(task, effect, span, effect.x)

    def _take(self, task: Task, effect: Compute | Move, span: Doing, value: Any) -> None:
        """Let the time of an effect pass, then resume the task with a value."""
        world = self._world
        price = world.price(effect, self.id)
        left_s = world.reserve(price, span[2])
        if left_s >= 0.0:
            self.ends(task, value, left_s + price.latency_s, span)
        else:
            now = world.kernel.now
            world.serve(price, lambda latency_s: self.ends(task, value, now() + latency_s, span))

    def _send(self, task: Task, effect: Send) -> None:
        world = self._world
        now_s = world.kernel.now()
        price = world.price(effect, self.id)
        x = effect.x if isinstance(effect.x, Meta) else _copy(effect.x)
        left_s = world.reserve(price, now_s)
        if left_s >= 0.0:
            self._leave(task, effect, x, now_s, left_s, price.latency_s)
        else:
            now = world.kernel.now
            world.serve(price, lambda latency_s: self._leave(task, effect, x, now_s, now(), latency_s))

    def _leave(
        self, task: Task, effect: Send, x: Any, start_s: float, left_s: float, latency_s: float
    ) -> None:
        """A message leaves the sender's link, now or at a time that is known."""
        to = effect.to
        self.ends(task, None, left_s, ("send", "to", start_s, x, to))
        self._world.rank(to).deliver((self.id, effect.tag), left_s + latency_s, x)

    def _recv(self, task: Task, effect: Recv) -> None:
        key = (effect.source, effect.tag)
        mail = self._mail.get(key)
        if mail:
            arrives_s, x = mail.popleft()
            self._hand_over(task, effect, self._world.kernel.now(), arrives_s, x)
        else:
            self._readers.setdefault(key, deque()).append((task, effect, self._world.kernel.now()))

    def ends(self, task: Task, value: Any, end_s: float, span: Doing) -> None:
        """Resume a task, and record what it did, at a time from now on."""
        kernel = self._world.kernel
        if kernel.trace is not None:
            kind, name, start_s, x, peer = span
            full = f"{name} {peer}" if kind in ("send", "recv") else name
            done = Span(self.name, kind, full, start_s, end_s, nbytes(x), str(peer))
            kernel.at(end_s, kernel.trace.add, done)
            kernel.resume_at(end_s, task, value)
        elif end_s <= kernel.now():
            kernel.resume(task, value)
        else:
            kernel.resume_at(end_s, task, value)

    def deliver(self, key: tuple[int, int], arrives_s: float, x: Any) -> None:
        """A message that has left its sender: to the first who waits for it, else into the mail."""
        readers = self._readers.get(key)
        while readers:
            task, effect, start_s = readers.popleft()
            if not (task.done or task.cancelled):
                self._hand_over(task, effect, start_s, arrives_s, x)
                return
        self._mail.setdefault(key, deque()).append((arrives_s, x))

    def _hand_over(self, task: Task, effect: Recv, start_s: float, arrives_s: float, x: Any) -> None:
        kernel = self._world.kernel
        like, source = effect.like, effect.source
        if like is not None and like is not x and nbytes(like) != nbytes(x):
            problem = RangeError(
                f"rank {self.id} received {nbytes(x)} bytes from rank {source}",
                expected=f"{nbytes(like)} bytes, as Recv says",
            )
            kernel.refuse(task, problem)
            return
        now_s = kernel.now()
        end_s = arrives_s if arrives_s > now_s else now_s
        self.ends(task, x, end_s, ("recv", "from", start_s, x, source))


_PERFORM: dict[type, Callable[[_Rank, Task, Any], None]] = {
    Send: _Rank._send,
    Recv: _Rank._recv,
    Compute: _Rank._compute,
    Move: _Rank._move,
    Collective: lambda rank, task, effect: rank._world.meet(rank, task, effect),
}


def nbytes(x: Any) -> int:
    """The size of what an effect carries; of a list, the sum."""
    if isinstance(x, list | tuple):
        return sum(nbytes(part) for part in x)
    return int(getattr(x, "nbytes", 0))


def _copy(x: Any) -> Any:
    copy = getattr(x, "clone", None) or getattr(x, "copy", None)
    return copy() if copy is not None else x


def _result(kind: str, given: list[Any], i: int) -> Any:
    """What member i of a collective gets, from what all gave."""
    if kind == "barrier":
        return None
    if kind == "all_gather":
        return list(given)
    if kind == "broadcast":
        return given[0]
    if kind == "all_to_all":
        return [parts[i] for parts in given]
    mine = [parts[i] for parts in given] if kind == "reduce_scatter" else given
    return mine[0] if mine[0] is None or isinstance(mine[0], Meta) else sum(mine[1:], _copy(mine[0]))


def _ranks(ranks: Any) -> str:
    """Ranks in words, the first eight of them."""
    some = ", ".join(str(r) for r in [*ranks][:8])
    return f"rank{'s' * (len(ranks) != 1)} {some}{', ...' * (len(ranks) > 8)}"
