"""A map over shards of data that returns a monoid, reduced over a tree.

A shard is an object that holds its rows and answers calls with `Sums`. `Here` keeps shards in this process,
`Processes` one in each of several; both add up in the same order, that of the tree, so what comes out depends
on the shards alone.

    with Processes(shards) as map:
        total = map.run("statistics", params)
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import InvariantError, LightworkError
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


class Blocking(Protocol):
    """Shards whose sums a caller waits for."""

    @property
    def num_rows(self) -> int: ...

    def run(self, method: str, *args: Any) -> Sums: ...


@dataclass(frozen=True, slots=True)
class Called:
    """A map of shards that block: its strategies ask for no effect, and `alone` runs them."""

    shards: Blocking

    @property
    def num_rows(self) -> int:
        return self.shards.num_rows

    async def run(self, method: str, *args: Any) -> Sums:
        return self.shards.run(method, *args)

    async def alike(self, work: Sequence[Work], fn: Callable[..., T], state: T, *args: Any) -> T:
        return fn(state, *args)


def alone(strategy: Coroutine[Any, Any, T]) -> T:
    """Run a strategy over a `Called` map to its end."""

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
    """Shards in this process, one after another."""

    shards: Sequence[Any]

    @property
    def num_rows(self) -> int:
        return sum(len(shard) for shard in self.shards)

    def run(self, method: str, *args: Any) -> Sums:
        return reduced([getattr(shard, method)(*args) for shard in self.shards])


class Processes:
    """A process for each shard. One that is lost starts again with its shard, and repeats what it had done
    since the last call of a method that is named in `fresh`: those need nothing of earlier calls.

    Raises LightworkError with what a shard raised, or if its process ends again and again.
    """

    def __init__(self, shards: Sequence[Any], *, fresh: Sequence[str] = ()) -> None:
        self.num_rows = sum(len(shard) for shard in shards)
        self._fresh = frozenset(fresh)
        self._since: list[tuple[str, tuple[Any, ...]]] = []
        self._children = [_Child(shard) for shard in shards]

    def run(self, method: str, *args: Any) -> Sums:
        if method in self._fresh:
            self._since = []
        for child in self._children:
            child.send(method, args)
        parts = [self._answer(child, method, args) for child in self._children]
        self._since.append((method, args))
        return reduced(parts)

    def close(self) -> None:
        for child in self._children:
            child.end()

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in self._children]

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, child: _Child, method: str, args: tuple[Any, ...]) -> Sums:
        for _ in range(MOST_RESTARTS):
            try:
                return child.answer()
            except (EOFError, OSError):
                child.start()
                for earlier, its in self._since:
                    child.send(earlier, its)
                    child.answer()
                child.send(method, args)
        raise LightworkError(
            f"the process of a shard ended {MOST_RESTARTS} times in {method}",
            expected="memory for each shard",
            fix="more workers, or fewer rows",
        )


class _Child:
    """The process of one shard."""

    def __init__(self, shard: Any) -> None:
        self._shard = shard
        self.start()

    def start(self) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._shard), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def send(self, method: str, args: tuple[Any, ...]) -> None:
        try:
            self._pipe.send((method, args))
        except OSError:
            return  # it is lost, which `answer` finds

    def answer(self) -> Sums:
        """Raises EOFError or OSError if the process is lost, LightworkError for what the shard raised."""
        error, sums = self._pipe.recv()
        if error is not None:
            raise error
        assert isinstance(sums, Sums)
        return sums

    def end(self) -> None:
        self._pipe.close()
        self._process.join(5.0)
        if self._process.is_alive():
            self._process.kill()


def _serve(pipe: Connection, shard: Any) -> None:
    while True:
        try:
            method, args = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            answer: tuple[LightworkError | None, Sums | None] = (None, getattr(shard, method)(*args))
        except Exception as error:
            known = (
                error if isinstance(error, LightworkError) else LightworkError(f"a shard failed: {error!r}")
            )
            answer = (known, None)
        pipe.send(answer)


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
    """The order bits of the k-th largest of what shards hold; they answer `histogram(prefix, shift)`.

    Eight rounds of 256 counts find it exactly, whatever the number of rows: 2 KB a round, and no values.
    """
    prefix, left = 0, k
    for shift in range(56, -8, -8):
        counts = (await map.run("histogram", prefix, shift))["counts"]
        above = np.cumsum(counts[::-1])
        at = min(int(np.searchsorted(above, left)), 255)
        left -= int(above[at - 1]) if at else 0
        prefix = prefix << 8 | (255 - at)
    return np.uint64(prefix)


def histogram(bits: NDArray[np.uint64], prefix: int, shift: int) -> Sums:
    """Of values whose bits above shift + 8 are the prefix: how many have which next byte, int64 [256]."""
    among = bits if shift == 56 else bits[(bits >> np.uint64(shift + 8)) == np.uint64(prefix)]
    byte = (among >> np.uint64(shift)) & np.uint64(255)
    return Sums({"counts": np.bincount(byte.astype(np.int64), minlength=256)})
