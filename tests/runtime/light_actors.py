"""Actors for tests of places: other processes import this file."""

from __future__ import annotations

from typing import Any

from lightwork.runtime import Sleep
from lightwork.runtime.actors import Here, Ref
from lightwork.runtime.futures import Future


class Log:
    """Keeps what it is told, in order."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def note(self, what: Any) -> int:
        self.heard.append(what)
        return len(self.heard)

    async def note_slowly(self, what: Any) -> int:
        await Sleep(0.0)
        return self.note(what)

    def read(self) -> list[Any]:
        return self.heard


class Sender:
    """Tells others numbers; some messages take an async method, some nobody waits for."""

    def __init__(self, name: int) -> None:
        self.name = name
        self.sent: dict[Ref, int] = {}

    async def send(self, others: list[Ref], kinds: str) -> list[int]:
        answers: list[Future] = []
        for other, kind in zip(others, kinds, strict=True):
            number = self.sent[other] = self.sent.get(other, 0) + 1
            if kind == "t":
                other.tell("note", (self.name, number))
            else:
                answers.append((other.note if kind == "a" else other.note_slowly)((self.name, number)))
        return [await answer for answer in answers]


class Node:
    """Works out a node of a graph from the nodes before it."""

    __slots__ = ("factor",)

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def start(self, x: int) -> int:
        return self.factor * x

    async def join(self, *before: Future) -> int:
        total = 0
        for future in before:
            total += await future
        return self.factor * total + len(before)

    def same(self, x: Any) -> Any:
        return x

    def fail(self, why: str) -> None:
        raise ValueError(why)

    async def fail_slowly(self, why: str) -> None:
        await Sleep(0.0)
        raise ValueError(why)


class Courier:
    """Makes, passes on and weighs a payload, and knows what its place has sent."""

    def begin(self, here: Here) -> None:
        self.here = here

    async def make(self, num_bytes: int) -> bytes:
        await Sleep(0.01)
        return b"x" * num_bytes

    def pass_on(self, payload: Future, others: list[Ref]) -> Future:
        """Through the others to the last of them, who weighs it."""
        if len(others) == 1:
            return others[0].weigh(payload)
        return others[0].pass_on(payload, others[1:])

    async def weigh(self, payload: Future) -> int:
        return len(await payload)

    def kept(self) -> int:
        """Futures that its process keeps for others, or others for it."""
        mesh = self.here.actors.mesh
        return len(mesh._owned) + len(mesh._held) + len(mesh.awaited) + len(mesh._keys)

    def sent_bytes(self) -> int:
        return sum(count.bytes for count in self.here.actors.counts())


class Player:
    """Draws numbers and counts how often it has been asked."""

    def __init__(self, name: str, friend: Ref | None = None) -> None:
        self.name = name
        self.friend = friend
        self.asked = 0

    def begin(self, here: Here) -> None:
        self.here = here

    def draw(self) -> tuple[str, int, float]:
        self.asked += 1
        return self.name, self.asked, float(self.here.rng.random())

    async def draw_together(self) -> list[Any]:
        mine = self.draw()
        return [mine, await self.friend.draw()] if self.friend is not None else [mine]

    async def think(self, seconds: float) -> float:
        await Sleep(seconds)
        return seconds


class Stuck:
    """Waits for what does not come."""

    def begin(self, here: Here) -> None:
        self.kernel = here.kernel

    async def wait(self) -> None:
        await self.kernel.future("a letter")
