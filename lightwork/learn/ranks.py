"""The map over shards where every rank of a world holds one: a strategy of effects.

The same lines run on processes of torch.distributed (`run_processes(fit, ...)`) and on hundreds of simulated
ranks, where sums are their sizes and an E-step is what it costs. How sums travel is the `way` that is given:
any `AllReduce`, such as Star() (flat), Tree(fan_out=2), Ring().
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lightwork.learn.shards import Map, Sums, parts
from lightwork.runtime.effects import Compute, Meta, Work

S = TypeVar("S")
Wrap = Callable[[NDArray[np.float64]], Any]


class Way(Protocol):
    """How a vector is summed over ranks."""

    async def sum(self, me: int, n: int, x: Any) -> Any: ...


class Counted(Protocol):
    """A shard that can tell what its methods take."""

    def __len__(self) -> int: ...

    def work(self, method: str, rows: int) -> Sequence[Work]:
        """What a method takes over so many rows."""
        ...


class Fitted(Protocol):
    """An estimator that is fitted over shards."""

    def shard(self, X: NDArray[Any], first: int = 0) -> Counted: ...

    async def fit_over(self, map: Map, X: NDArray[Any]) -> None: ...


E = TypeVar("E", bound=Fitted)


class Ranks:
    """One rank's part of a map.

    sample: a shard of one row, that tells what sums look like. num_rows: of the rank's own shard, which a
    simulated one need not have. wrap: makes an array what the world carries. likes: sums seen before, shared
    by the ranks of one process.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        shard: Counted,
        sample: Counted,
        way: Way,
        *,
        num_rows: int,
        wrap: Wrap = np.asarray,
        likes: dict[str, Sums] | None = None,
    ) -> None:
        self.num_rows = num_rows
        self._rank, self._size, self._way = rank, size, way
        self._shard, self._sample, self._wrap = shard, sample, wrap
        self._likes: dict[str, Sums] = {} if likes is None else likes

    async def run(self, method: str, *args: Any) -> Sums:
        """What the method gives on all ranks' shards together, on every rank."""
        like = self._likes.get(method)
        if like is None:
            like = self._likes[method] = getattr(self._sample, method)(*args)
        rows = -(-self.num_rows // self._size)
        empty = Meta((sum(array.size for array in like.arrays.values()),), "float64")
        given = (empty, like, method, args)
        x = await Compute(self._shard.work(method, rows), self._packed, given, method)
        if not like.arrays:
            return like
        return unpacked(await self._way.sum(self._rank, self._size, x), like)

    async def alike(self, work: Sequence[Work], fn: Callable[..., S], state: S, *args: Any) -> S:
        """What every rank computes for itself: the next state. Simulated, the state stays as it is."""
        result: S = await Compute(work, fn, (state, *args), "update")
        return result

    def _packed(self, empty: Meta, like: Sums, method: str, args: tuple[Any, ...]) -> Any:
        """What a shard gives, in one vector."""
        given: Mapping[str, NDArray[Any]] = getattr(self._shard, method)(*args).arrays
        flat = np.zeros(empty.shape)
        if given:
            np.concatenate([np.ravel(given[name]) for name in like.arrays], out=flat, casting="unsafe")
        return self._wrap(flat)


def unpacked(x: Any, like: Sums) -> Sums:
    """The arrays of a vector; those of a simulated one are zeros."""
    flat = np.zeros(x.shape) if isinstance(x, Meta) else np.asarray(x)
    found, at = {}, 0
    for name, array in like.arrays.items():
        found[name] = flat[at : at + array.size].reshape(array.shape).astype(array.dtype, copy=False)
        at += array.size
    return Sums(found)


async def fit(rank: int, size: int, coder: E, X: NDArray[Any], way: Way, wrap: Wrap = np.asarray) -> E:
    """Fit an estimator as one of several ranks; each ends with the same one.

    X: all rows [N, D], of which a rank reads its part, and the first parameters are drawn from the whole.
    wrap: torch.from_numpy, where tensors are sent.
    """
    mine = [*parts(size, len(X)), *[slice(0, 0)] * size][rank]
    shard, sample = coder.shard(X[mine], mine.start), coder.shard(X[:1])
    map = Ranks(rank, size, shard, sample, way, num_rows=len(X), wrap=wrap)
    await coder.fit_over(map, X)
    return coder
