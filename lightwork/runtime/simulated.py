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
Then = Callable[[float], None]


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

    def serve(self, effect: Effect, rank: int, then: Then) -> None:
        """Serve an effect's demands side by side; then(latency_s) when the last has been served."""
        price = self.price(effect, rank)
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
            self.serve(
                effect, effect.group[0], lambda latency_s: self._part(meeting, effect.group, latency_s)
            )

    def missing(self, effect: Collective) -> list[int]:
        """The ranks that have not entered a collective that others wait in."""
        for (group, _), meeting in self._meetings.items():
            if group == effect.group and any(e is effect for _, e, _ in meeting.came.values()):
                return [r for r in group if r not in meeting.came]
        return []

    def span(
        self, rank: str, kind: str, name: str, start_s: float, end_s: float, x: Any, peer: str = ""
    ) -> None:
        if self.kernel.trace is not None:
            self.kernel.trace.add(Span(rank, kind, name, start_s, end_s, nbytes(x), peer))

    def _part(self, meeting: _Meeting, group: tuple[int, ...], latency_s: float) -> None:
        end_s = self.kernel.now() + latency_s
        given = [meeting.came[r][1].x for r in group]
        for i, r in enumerate(group):
            task, effect, start_s = meeting.came[r]
            self.span(str(r), "collective", effect.kind, start_s, end_s, effect.x)
            self.kernel.resume_at(end_s, task, _result(effect.kind, given, i))

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

    def perform(self, task: Task, effect: Any) -> None:
        try:
            if isinstance(effect, Send):
                self._send(task, effect)
            elif isinstance(effect, Recv):
                self._recv(task, effect)
            elif isinstance(effect, Compute):
                self._take(task, effect, effect.name, None)
            elif isinstance(effect, Move):
                self._take(task, effect, f"{effect.src} to {effect.dst}", effect.x)
            elif isinstance(effect, Collective):
                self._world.meet(self, task, effect)
            else:
                raise InvariantError(
                    f"{effect!r} is no effect of a simulated world", expected="see effects.py"
                )
        except LightworkError as error:
            self._world.kernel.refuse(task, error)

    def explain(self, effect: Any) -> str:
        if isinstance(effect, Recv):
            return f"a message of rank {effect.source}, tag {effect.tag}"
        if isinstance(effect, Collective):
            return f"{effect.kind} of {_ranks(effect.group)}: missing {_ranks(self._world.missing(effect))}"
        return ""

    def _take(self, task: Task, effect: Compute | Move, name: str, x: Any) -> None:
        world, kernel = self._world, self._world.kernel
        start_s = kernel.now()

        def then(latency_s: float) -> None:
            end_s = kernel.now() + latency_s
            if kernel.trace is not None:
                world.span(self.name, type(effect).__name__.lower(), name, start_s, end_s, x)
            kernel.resume_at(end_s, task, value)

        if isinstance(effect, Move):
            value = effect.x
        elif world.execute and effect.fn is not None:
            value = effect.fn(*effect.args)
        else:
            value = effect.args[0] if effect.args else None
        world.serve(effect, self.id, then)

    def _send(self, task: Task, effect: Send) -> None:
        world, kernel = self._world, self._world.kernel
        start_s = kernel.now()
        x = effect.x if isinstance(effect.x, Meta) else _copy(effect.x)

        def left(latency_s: float) -> None:
            now_s = kernel.now()
            if kernel.trace is not None:
                world.span(self.name, "send", f"to {effect.to}", start_s, now_s, x, str(effect.to))
            kernel.resume(task)
            world.rank(effect.to).deliver((self.id, effect.tag), now_s + latency_s, x)

        world.serve(effect, self.id, left)

    def _recv(self, task: Task, effect: Recv) -> None:
        key = (effect.source, effect.tag)
        mail = self._mail.get(key)
        if mail:
            self._hand_over(task, effect, self._world.kernel.now(), *mail.popleft())
        else:
            self._readers.setdefault(key, deque()).append((task, effect, self._world.kernel.now()))

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
        if effect.like is not None and nbytes(effect.like) != nbytes(x):
            problem = RangeError(
                f"rank {self.id} received {nbytes(x)} bytes from rank {effect.source}",
                expected=f"{nbytes(effect.like)} bytes, as Recv says",
            )
            kernel.refuse(task, problem)
            return
        end_s = max(arrives_s, kernel.now())
        if kernel.trace is not None:
            world, peer = self._world, str(effect.source)
            world.span(self.name, "recv", f"from {peer}", start_s, end_s, x, peer)
        kernel.resume_at(end_s, task, x)


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
