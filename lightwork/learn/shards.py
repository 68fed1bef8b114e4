"""A map over shards of data that returns a monoid, reduced over a tree.

A shard is an object that holds its rows and answers calls with `Sums`. Methods that need what earlier calls
left in it are named in its attribute `continues`; without one, each call is on its own.

`Here` keeps shards in this process; `Placed` makes an actor of each, at whatever places there are: processes,
Ray actors, simulated hosts, or this process with a thread for each. All add up in the same order, that of the
tree, so what comes out depends on the shards alone.

    with Actors(kernel, [Process(), Process()]) as actors:
        total = kernel.run(Placed(actors, shards).run("statistics", params))
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import HostLostError, InvariantError, LightworkError
from lightwork.runtime import refs
from lightwork.runtime.actors import Actors
from lightwork.runtime.drive import drive
from lightwork.runtime.effects import Effect, Work

T = TypeVar("T")
FAN_OUT = 2
MOST_RESTARTS = 3
"""Of one shard in one call; a process that ends again and again will not stop doing so."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Arrays that are added up, by name. The neutral one has none."""

    arrays: Mapping[str, NDArray[Any]]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.arrays[name]

    def merge(self, other: Sums) -> Sums:
        """Both together. Raises KeyError unless they hold the same names, or one is neutral."""
        if not self.arrays or not other.arrays:
            return self if self.arrays else other
        return Sums({name: array + other.arrays[name] for name, array in self.arrays.items()})


class Map(Protocol):
    """Shards, wherever they are, as strategies see them. num_rows: of all."""

    @property
    def num_rows(self) -> int: ...

    async def run(self, method: str, *args: Any) -> Sums:
        """What `getattr(shard, method)(*args)` gives, of all shards together."""
        ...

    async def alike(self, work: Sequence[Work], fn: Callable[..., T], state: T, *args: Any) -> T:
        """fn(state, *args), which everybody who has the sums computes alike; work: what it takes."""
        ...


def alone(strategy: Coroutine[Any, Any, T]) -> T:
    """Run a strategy over shards that are `Here` to its end."""

    def perform(effect: Effect) -> None:
        raise InvariantError(f"{effect!r} of a strategy that runs alone", expected="no effects")

    return drive(strategy, perform)


def children(rank: int, size: int, fan_out: int = FAN_OUT) -> range:
    """Whose sums are added to this rank's."""
    first = rank * fan_out + 1
    return range(min(first, size), min(first + fan_out, size))


def reduced(parts: Sequence[Sums], fan_out: int = FAN_OUT) -> Sums:
    """The same sum, in the same order, of parts that are all here."""

    def below(rank: int) -> Sums:
        total = parts[rank]
        for child in children(rank, len(parts), fan_out):
            total = total.merge(below(child))
        return total

    return below(0)


@dataclass(frozen=True, slots=True)
class Here:
    """Shards in this process, one after another: its strategies ask for no effect, and `alone` runs them."""

    shards: Sequence[Any]

    @property
    def num_rows(self) -> int:
        return sum(len(shard) for shard in self.shards)

    async def run(self, method: str, *args: Any) -> Sums:
        return reduced([getattr(shard, method)(*args) for shard in self.shards])

    async def alike(self, work: Sequence[Work], fn: Callable[..., T], state: T, *args: Any) -> T:
        return fn(state, *args)


Call = tuple[int, str, tuple[Any, ...]]
"""Its number, method and arguments."""


class Placed:
    """An actor for each shard, at the places of `Actors` in turn: this process only if there is no other.

    A shard is sent once. Calls go down the tree from actor to actor and sums come up it, so this process says
    and hears as much as one of them. A place that is lost starts again: its shards are sent once more, and
    repeat what they had done since the last call that was not of a method that `continues`. What others have
    done is not done twice.

    Raises what a shard raised, and LightworkError if a place is lost again and again.
    """

    def __init__(self, actors: Actors, shards: Sequence[Any]) -> None:
        self.num_rows = sum(len(shard) for shard in shards)
        self._actors, self._shards = actors, shards
        self._continues = frozenset(getattr(shards[0], "continues", ()))
        self._since: list[Call] = []
        self._num_calls = 0
        self._places = actors.places[1:] or actors.places
        self._workers: list[Any] = [None] * len(shards)
        self._losses = [0] * len(shards)  # of each one's place, when it was made

    async def run(self, method: str, *args: Any) -> Sums:
        if method not in self._continues:
            self._since = []
        call = (self._num_calls, method, args)
        self._num_calls += 1
        for _ in range(MOST_RESTARTS):
            try:
                calls = [*self._since, call] if await self._start() else [call]
                total: Sums = await self._workers[0].sums(calls)
            except HostLostError as error:
                lost = error
            else:
                self._since.append(call)
                return total
        raise LightworkError(
            f"the place of a shard ended {MOST_RESTARTS} times in {method}",
            expected="memory for each shard",
            fix="more workers, or fewer rows",
        ) from lost

    async def alike(self, work: Sequence[Work], fn: Callable[..., T], state: T, *args: Any) -> T:
        return fn(state, *args)

    def close(self) -> None:
        """Let go of the shards; the places go on."""
        for rank, worker in enumerate(self._workers):
            if self._is_there(rank):
                self._actors.kill(worker)
        self._workers = [None] * len(self._workers)

    async def _start(self) -> bool:
        """Make the actors that are not there; returns whether some were not. When all have answered, all
        places know where the others are."""
        actors, workers = self._actors, self._workers
        missing = [rank for rank in range(len(workers)) if not self._is_there(rank)]
        for rank in missing:
            place = self._places[rank % len(self._places)]
            place.restart()
            worker = workers[rank] = actors.create(Worker, rank, self._shards[rank], on=place)
            self._losses[rank] = actors.desks[worker.place].losses
        if missing:
            below = [
                [workers[child] for child in children(rank, len(workers))] for rank in range(len(workers))
            ]
            met = [worker.meet(mine) for worker, mine in zip(workers, below, strict=True)]
            await actors.kernel.gather(*met)
        return bool(missing)

    def _is_there(self, rank: int) -> bool:
        """Whether it was made, and its place has not been lost since."""
        worker = self._workers[rank]
        return worker is not None and self._actors.desks[worker.place].losses == self._losses[rank]


class Worker:
    """The actor of a shard. Its place answers meanwhile: the shard computes on a thread beside it."""

    def __init__(self, rank: int, shard: Any) -> None:
        self._rank, self._shard = rank, shard
        self._next = 0
        self._own = Sums({})
        self._below: Sequence[Any] = ()

    def begin(self, here: refs.Here) -> None:
        self._kernel = here.kernel

    def meet(self, below: Sequence[Any]) -> None:
        """Whose sums are added to this one's."""
        self._below = below

    async def sums(self, calls: Sequence[Call]) -> Sums:
        """Of the last call, here and below. What has been done is not done again."""
        asked = [worker.sums(calls) for worker in self._below]
        for future in asked:
            future.add_callback(bool)  # it is wanted as soon as it is there
        total = await self._done(calls)
        for future in asked:
            total = total.merge(await future)
        return total

    async def _done(self, calls: Sequence[Call]) -> Sums:
        for number, method, args in calls:
            if number >= self._next:
                fn, thread = getattr(self._shard, method), f"lightwork-shard-{self._rank}"
                self._own = await self._kernel.offload(fn, *args, thread=thread)
                self._next = number + 1
        return self._own


def parts(num: int, of: int) -> Iterator[slice]:
    """Rows cut into `num` parts whose sizes differ by at most one; fewer if there are fewer rows."""
    num = max(1, min(num, of))
    ends = [of * i // num for i in range(num + 1)]
    for begin, end in pairwise(ends):
        yield slice(begin, end)


def order_bits(values: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Unsigned numbers in the order of the values, one for each."""
    bits = np.ascontiguousarray(values, np.float64).view(np.uint64)
    sign = bits >> np.uint64(63)
    return np.where(sign == 1, ~bits, bits | np.uint64(1 << 63))


async def kth_largest(map: Map, k: int) -> np.uint64:
    """Order bits that k of the values that shards hold reach, or more if the k-th largest is there more than
    once; they answer `histogram(prefix, shift)`.

    Eight rounds of 256 counts at most, whatever the number of rows: 2 KB a round, and no values. It is over
    as soon as no more than k begin as the k-th largest does.
    """
    prefix, left = 0, k
    for shift in range(56, -8, -8):
        counts = (await map.run("histogram", prefix, shift))["counts"]
        above = np.cumsum(counts[::-1])
        at = min(int(np.searchsorted(above, left)), 255)
        left -= int(above[at - 1]) if at else 0
        prefix = prefix << 8 | (255 - at)
        if left == counts[255 - at]:
            return np.uint64(prefix << shift)
    return np.uint64(prefix)


def histogram(bits: NDArray[np.uint64], prefix: int, shift: int) -> Sums:
    """Of values whose bits above shift + 8 are the prefix: how many have which next byte, int64 [256]."""
    among = bits if shift == 56 else bits[(bits >> np.uint64(shift + 8)) == np.uint64(prefix)]
    byte = (among >> np.uint64(shift)) & np.uint64(255)
    return Sums({"counts": np.bincount(byte.astype(np.int64), minlength=256)})
