"""Ring all-reduce: each rank sends to its right neighbour only, and no link carries more than it must.

Paper:  "Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations", 2009
Idea:   n - 1 steps of reduce-scatter round the ring leave each rank one finished chunk; n - 1 steps of
        all-gather carry the finished chunks on
Shapes: n chunks of S/n bytes -> the same n chunks, each the sum over all ranks, in place
Cost:   2(n-1) messages of S/n bytes per rank: 2(n-1)(S/(nB) + a) seconds on links of B bytes/s and latency a
Claims: -
"""

from __future__ import annotations

from collections.abc import MutableSequence
from math import prod
from operator import iadd
from typing import Any

from lightwork.runtime.effects import Compute, Recv, Send, Work


async def ring_all_reduce(me: int, n: int, chunks: MutableSequence[Any]) -> None:
    """Sum n chunks over ranks 0 to n - 1, in place.

    chunks: tensors, arrays or Metas, of equal shapes on all ranks; they may differ from chunk to chunk.
    """
    right, left = (me + 1) % n, (me - 1) % n
    for s in range(n - 1):
        await Send(right, chunks[(me - s) % n])
        mine = chunks[(me - s - 1) % n]
        got = await Recv(left, like=mine)
        chunks[(me - s - 1) % n] = await Compute(_sum(mine), iadd, (mine, got), "add")
    for s in range(n - 1):
        await Send(right, chunks[(me + 1 - s) % n])
        chunks[(me - s) % n] = await Recv(left, like=chunks[(me - s) % n])


def _sum(x: Any) -> tuple[Work]:
    """Reads both terms, writes one."""
    dtype = str(x.dtype).removeprefix("torch.")
    return (Work(kind="vector", dtype=dtype, ops=prod(x.shape), bytes=3 * x.nbytes),)
