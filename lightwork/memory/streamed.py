"""Weights that pass through a memory too small for them: computing and copying as strategies, for real and
simulated.

What is copied where is decided by a `Residency`, by way of `Residents`, which also holds the limit. One child
copies what it is asked for, in order; a pass asks for what its policy wants ahead, waits for the item that is
next, and computes it. Ranks that share every layer have such a memory each, see `rank_pass`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from operator import add
from typing import Any

from lightwork.errors import LightworkError
from lightwork.memory.residents import Residents
from lightwork.parallel.all_reduces import AllReduce, adding
from lightwork.runtime.effects import Compute, Move, Recv, Send, Signal, Spawn, Wait

Fetch = Callable[[str, int], Move]
"""(item, slot) -> what brings it there."""
Use = Callable[[str, int, Any], Awaitable[Any]]
"""(item, its slot, input) -> what computes it."""

HEAD = "head"
"""The block that scores."""


class Stream:
    """What passes and the child that copies for them tell each other.

    coming: items asked for and not seen yet, by the number of their copy, from 1 on. taken: looks that the
    child has had at what it is asked for. me: the rank whose memory it is.
    """

    def __init__(self, residents: Residents, me: int = 0) -> None:
        self.residents = residents
        self.asks, self.copied = f"{me} asked", f"{me} copied"
        self.coming: dict[str, int] = {}
        self.todo: deque[tuple[int, str, int] | None] = deque()
        self.failed: dict[int, LightworkError] = {}
        self.taken = 0
        self._asked = 0

    def ask(self, name: str, slot: int) -> Signal:
        """For a copy whose place `residents` has given. Returns what wakes the child."""
        self._asked += 1
        self.coming[name] = self._asked
        self.todo.append((self._asked, name, slot))
        return Signal(self.asks)

    def stop(self) -> Signal:
        """No copy is asked for any more."""
        self.todo.append(None)
        return Signal(self.asks)

    async def wait(self, name: str | None = None) -> None:
        """Wait for an item that is coming, or for all. Raises LightworkError if its copy failed."""
        number = self._asked if name is None else self.coming[name]
        await Wait(self.copied, number)
        errors = {}
        for one in [one for one, its in self.coming.items() if its <= number]:
            errors[one] = self.failed.pop(self.coming.pop(one), None)
            self.residents.end(one, arrived=errors[one] is None)
        if name is not None and (error := errors[name]) is not None:
            raise error


async def copies(stream: Stream, fetch: Fetch) -> None:
    """Make the copies that are asked for, one after the other, until there are no more."""
    while True:
        stream.taken += 1
        await Wait(stream.asks, stream.taken)
        asked = stream.todo.popleft()
        if asked is None:
            return
        number, name, slot = asked
        try:
            await fetch(name, slot)
        except LightworkError as error:
            stream.failed[number] = error
        await Signal(stream.copied)


async def one_pass(stream: Stream, names: Sequence[str], use: Use, x: Any) -> Any:
    """What items make of x, in the order in which they are used.

    A pass may be given up at any wait: the next one begins with the first item again.
    """
    residents = stream.residents
    for name in names:
        for wanted, slot in residents.turn(name):
            await stream.ask(wanted, slot)
        if (
            name not in residents and name not in stream.coming
        ):  # all room is taken by what a pass left behind
            await stream.wait()
            place = residents.begin(name)
            assert place is not None, "nothing else is held, and nothing is coming"
            await stream.ask(name, place)
        if name in stream.coming:
            await stream.wait(name)
        x = await use(name, residents.slot(name), x)
    return x


async def rank_pass(
    me: int, n: int, stream: Stream, items: Mapping[str, Sequence[str]], use: Use, way: AllReduce, x: Any
) -> Any:
    """A pass of rank `me`, which has its share of every block. Returns what `one_pass` does.

    items: in the order of use, each with the blocks that are copied as one. use: computes what this rank
    adds to its input in a block; ranks then have the sum of that. HEAD, which the first rank alone has, gives
    the result. x: on the first rank what goes in, on others anything of its shape.
    """
    if me > 0:
        x = await Recv(0, like=x)
    for rank in range(1, n) if me == 0 else ():
        await Send(rank, x)

    async def compute(item: str, slot: int, x: Any) -> Any:
        for block in items[item]:
            part = await use(block, slot, x)
            if block == HEAD:
                return part
            x = await Compute(adding(x), add, (x, await way.sum(me, n, part)), "add")
        return x

    return await one_pass(stream, [*items], compute, x)


async def passes(
    stream: Stream, fetch: Fetch, one: Callable[[Any], Coroutine[Any, Any, Any]], inputs: Sequence[Any]
) -> list[Any]:
    """One pass after the other. one: what a pass is, of its input."""
    await Spawn(copies(stream, fetch), "copies")
    try:
        return [await one(x) for x in inputs]
    finally:
        await stream.stop()
