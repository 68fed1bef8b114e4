"""Strategies as arrays: which operation needs which resource, for how long, after which others.

A planner sweeps thousands of variants of the same programs; recorded once, their times are worked out again
by `replay`, a hundred times faster than by stepping coroutines.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import DeadlockError, SpecError
from lightwork.runtime.effects import Collective, Compute, Effect, Move, Price, Recv, Send, Sleep


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Operations in order of issue; those of one rank follow each other as its program has them.

    Operation i becomes ready when all of after[first[i]:first[i + 1]] are done, holds resource[i] (-1: none)
    for amount_s[i], and is done latency_s[i] later. rank[i] issued it.
    """

    resources: tuple[str, ...]
    resource: NDArray[np.int32]
    amount_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    first: NDArray[np.int64]
    after: NDArray[np.int32]
    rank: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.resource)


def record(programs: Mapping[int, Coroutine[Any, Any, Any]], price: Callable[[Effect, int], Price]) -> Graph:
    """Run the strategy of each rank without time, and write down what it asked for.

    Strategies of Compute, Move, Send, Recv, Collective and Sleep, on Fifo resources of one server. Raises
    SpecError for anything else, DeadlockError if the ranks wait for each other.
    """
    recorder = _Recorder(price)
    left = [_Program(rank, coro) for rank, coro in programs.items()]
    while left:
        moved = [recorder.advance(program) for program in left]
        if not any(moved):
            says = "; ".join(f"rank {p.rank} in {p.effect!r}" for p in left[:8])
            raise DeadlockError(f"ranks wait for each other: {says}", expected="a message, or all members")
        left = [program for program in left if not program.done]
    return recorder.graph()


class _Program:
    """A rank's coroutine, the effect it waits for, and the operations that its next one comes after."""

    __slots__ = ("after", "coro", "done", "effect", "entered", "rank", "turn", "value")

    def __init__(self, rank: int, coro: Coroutine[Any, Any, Any]) -> None:
        self.rank = rank
        self.coro = coro
        self.done = False
        self.value: Any = None
        self.effect: Any = None
        self.after: tuple[int, ...] = ()
        self.entered: dict[tuple[int, ...], int] = {}
        self.turn: tuple[tuple[int, ...], int] | None = None


class _Recorder:
    def __init__(self, price: Callable[[Effect, int], Price]) -> None:
        self._price = price
        self._names: dict[str, int] = {}
        self._resource, self._rank, self._after = array("i"), array("i"), array("i")
        self._amount_s, self._latency_s = array("d"), array("d")
        self._first = array("q", [0])
        self._mail: dict[tuple[int, int, int], deque[tuple[tuple[int, ...], Any]]] = {}
        self._came: dict[tuple[tuple[int, ...], int], dict[int, tuple[_Program, Collective]]] = {}
        self._met: dict[tuple[tuple[int, ...], int], tuple[int, ...]] = {}

    def advance(self, program: _Program) -> bool:
        """Run a program until it waits or ends. False if it waits where it waited before."""
        moved = False
        try:
            while True:
                if program.effect is None:
                    program.effect = program.coro.send(program.value)
                    moved = True
                if not self._perform(program, program.effect):
                    return moved
                program.effect = None
        except StopIteration:
            program.done = True
            return True

    def graph(self) -> Graph:
        return Graph(
            resources=tuple(self._names),
            resource=np.array(self._resource, dtype=np.int32),
            amount_s=np.array(self._amount_s, dtype=np.float64),
            latency_s=np.array(self._latency_s, dtype=np.float64),
            first=np.array(self._first, dtype=np.int64),
            after=np.array(self._after, dtype=np.int32),
            rank=np.array(self._rank, dtype=np.int32),
        )

    def _perform(self, program: _Program, effect: Any) -> bool:
        """Write an effect down; False if it must wait."""
        program.value = None
        match effect:
            case Compute():
                program.value = effect.args[0] if effect.args else None
                program.after = self._serve(program, effect, program.after)
            case Move():
                program.value = effect.x
                program.after = self._serve(program, effect, program.after)
            case Sleep():
                program.after = self._add(program.rank, -1, 0.0, effect.seconds, program.after)
            case Send():
                price = self._price(effect, program.rank)
                program.after = self._demand(program.rank, price, 0.0, program.after)
                arrives = program.after
                if price.latency_s:
                    arrives = self._add(program.rank, -1, 0.0, price.latency_s, arrives)
                key = (program.rank, effect.to, effect.tag)
                self._mail.setdefault(key, deque()).append((arrives, effect.x))
            case Recv():
                mail = self._mail.get((effect.source, program.rank, effect.tag))
                if not mail:
                    return False
                arrived, program.value = mail.popleft()
                program.after = (*program.after, *arrived)
            case Collective():
                return self._meet(program, effect)
            case _:
                raise SpecError(
                    f"{effect!r} of rank {program.rank} is not known beforehand",
                    expected="Compute, Move, Send, Recv, Collective or Sleep",
                    fix="simulate it with SimWorld",
                )
        return True

    def _meet(self, program: _Program, effect: Collective) -> bool:
        if program.turn is None:
            number = program.entered.get(effect.group, 0)
            program.entered[effect.group] = number + 1
            program.turn = (effect.group, number)
            came = self._came.setdefault(program.turn, {})
            came[program.rank] = (program, effect)
            if len(came) == len(effect.group):
                kinds = {e.kind for _, e in came.values()}
                if len(kinds) > 1:
                    raise DeadlockError(
                        f"one collective is {' and '.join(sorted(kinds))}", expected="one kind"
                    )
                after = tuple(dict.fromkeys(op for p, _ in came.values() for op in p.after))
                given = Collective(effect.kind, effect.group, [came[r][1].x for r in effect.group])
                self._met[program.turn] = self._serve(came[effect.group[0]][0], given, after)
                del self._came[program.turn]
        if program.turn not in self._met:
            return False
        program.after = self._met[program.turn]
        program.turn = None
        program.value = effect.x
        return True

    def _serve(self, program: _Program, effect: Effect, after: tuple[int, ...]) -> tuple[int, ...]:
        price = self._price(effect, program.rank)
        return self._demand(program.rank, price, price.latency_s, after)

    def _demand(self, rank: int, price: Price, latency_s: float, after: tuple[int, ...]) -> tuple[int, ...]:
        """Operations that serve a price; returns those that come last."""
        if not price.demands:
            return self._add(rank, -1, 0.0, latency_s, after) if latency_s else after
        if len(price.demands) == 1:
            path, amount_s = price.demands[0]
            return self._add(rank, self._name(path), amount_s, latency_s, after)
        served: tuple[int, ...] = ()
        for path, amount_s in price.demands:
            served += self._add(rank, self._name(path), amount_s, 0.0, after)
        return self._add(rank, -1, 0.0, latency_s, served)

    def _name(self, path: tuple[str, ...]) -> int:
        if len(path) != 1:
            raise SpecError(
                f"a price passes {'/'.join(path)}, whose rate is not known beforehand",
                expected="Fifo resources",
                fix="simulate it with SimWorld",
            )
        return self._names.setdefault(path[0], len(self._names))

    def _add(
        self, rank: int, resource: int, amount_s: float, latency_s: float, after: Sequence[int]
    ) -> tuple[int]:
        self._resource.append(resource)
        self._rank.append(rank)
        self._amount_s.append(amount_s)
        self._latency_s.append(latency_s)
        self._after.extend(after)
        self._first.append(len(self._after))
        return (len(self._resource) - 1,)
