"""Tree all-reduce: ranks add up in groups of a few, then those that did, and the sum comes back the same way.

Paper:  "Optimization of Collective Communication Operations in MPICH", 2005
Idea:   in round j one of fan_out neighbours, fan_out^j apart, takes the others' sums; rounds grow with the
        logarithm of the ranks, and no rank ever meets more than a few
Shapes: S bytes on each of n ranks -> their sum on all, added in the order of the ranks
Cost:   2 ceil(log_f n) ((f-1) S/B + a) seconds on links of B bytes/s and latency a; f = n is a star
Claims: prosper
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import iadd
from typing import Any

from lightwork.cluster.devices import Link
from lightwork.errors import RangeError
from lightwork.parallel.all_reduces import adding
from lightwork.runtime.effects import Compute, Recv, Send


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """fan_out: how many sums become one in a round. Raises RangeError if they are fewer than two."""

    fan_out: int = 2

    def __post_init__(self) -> None:
        if self.fan_out < 2:
            raise RangeError(f"Tree(fan_out={self.fan_out})", expected="fan_out >= 2", fix="Tree()")

    async def sum(self, me: int, n: int, x: Any) -> Any:
        rounds = [*self._rounds(n)]
        depth = 0
        while depth < len(rounds) and me % (rounds[depth] * self.fan_out) == 0:
            for child in self._children(me, n, rounds[depth]):
                x = await Compute(adding(x), iadd, (x, await Recv(child, like=x)), "add")
            depth += 1
        if depth < len(rounds):
            parent = me - me % (rounds[depth] * self.fan_out)
            await Send(parent, x)
            x = await Recv(parent, like=x)
        for stride in reversed(rounds[:depth]):
            for child in self._children(me, n, stride):
                await Send(child, x)
        return x

    def seconds(self, n: int, nbytes: float, link: Link) -> float:
        """Exact where n is a power of fan_out, else at most this."""
        messages = [len(self._children(0, n, stride)) for stride in self._rounds(n)]
        return 2 * sum(m * nbytes / link.bytes_per_s + link.latency_s for m in messages)

    def _rounds(self, n: int) -> Iterator[int]:
        """The distance of those that add up, round by round."""
        stride = 1
        while stride < n:
            yield stride
            stride *= self.fan_out

    def _children(self, me: int, n: int, stride: int) -> range:
        return range(me + stride, min(n, me + stride * self.fan_out), stride)
