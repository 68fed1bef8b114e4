"""Ring all-reduce: each rank sends to its right neighbour only, and no link carries more than it must.

Paper:  "Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations", 2009
Idea:   n - 1 steps of reduce-scatter round the ring leave each rank one finished chunk; n - 1 steps of
        all-gather carry the finished chunks on
Shapes: n chunks of S/n bytes -> the same n chunks, each the sum over all ranks, in place
Cost:   2(n-1) messages of S/n bytes per rank: 2(n-1)(S/(nB) + a) seconds on links of B bytes/s and latency a
Claims: tpi_llm
"""

from __future__ import annotations

from collections.abc import MutableSequence
from dataclasses import dataclass
from itertools import pairwise
from operator import iadd
from typing import Any

from lightwork.cluster.devices import Link
from lightwork.parallel.all_reduces import adding
from lightwork.runtime.effects import Compute, Meta, Recv, Send


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """Fewest bytes for each link, most hops."""

    async def sum(self, me: int, n: int, x: Any) -> Any:
        chunks, flat = _chunks(x, n)
        await ring_all_reduce(me, n, chunks)
        if not isinstance(x, Meta):
            at = 0
            for chunk in chunks:
                flat[at : at + len(chunk)] = chunk
                at += len(chunk)
        return x

    def seconds(self, n: int, nbytes: float, link: Link) -> float:
        return 2 * (n - 1) * (nbytes / n / link.bytes_per_s + link.latency_s)


async def ring_all_reduce(me: int, n: int, chunks: MutableSequence[Any]) -> None:
    """Sum n chunks over ranks 0 to n - 1, in place.

    chunks: tensors, arrays or Metas, of equal shapes on all ranks; they may differ from chunk to chunk.
    """
    right, left = (me + 1) % n, (me - 1) % n
    for s in range(n - 1):
        await Send(right, chunks[(me - s) % n])
        mine = chunks[(me - s - 1) % n]
        got = await Recv(left, like=mine)
        chunks[(me - s - 1) % n] = await Compute(adding(mine), iadd, (mine, got), "add")
    for s in range(n - 1):
        await Send(right, chunks[(me + 1 - s) % n])
        chunks[(me - s) % n] = await Recv(left, like=chunks[(me - s) % n])


def _chunks(x: Any, n: int) -> tuple[list[Any], Any]:
    """x in n parts, as equal as can be, and what they are parts of."""
    flat: Any = x if isinstance(x, Meta) else x.reshape(-1)
    size = Meta(x.shape, "int8").nbytes
    ends = list(pairwise(size * i // n for i in range(n + 1)))
    if isinstance(x, Meta):
        return [Meta((b - a,), x.dtype) for a, b in ends], flat
    return [flat[a:b] for a, b in ends], flat
