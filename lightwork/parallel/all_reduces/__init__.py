"""The kind of technique that sums a tensor over ranks: one file each, strategies of one rank.

Which one is quickest depends on the link: few hops where it is slow to answer, few bytes where it is narrow.
To add one: a class with both methods, and its closed form tested against the simulated ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Protocol

from lightwork.cluster.devices import Link
from lightwork.runtime.effects import Work


class AllReduce(Protocol):
    """Sums over ranks 0 to n - 1, with the same bits on all of them."""

    async def sum(self, me: int, n: int, x: Any) -> Any:
        """The sum of all ranks' x. x: a tensor, array or Meta, of one shape on all ranks; it is used up."""
        ...

    def seconds(self, n: int, nbytes: float, link: Link) -> float:
        """How long that takes where each rank has such a link, both ways at once."""
        ...


def quickest(choices: Sequence[AllReduce], n: int, nbytes: float, link: Link) -> AllReduce:
    """Of some ways to sum nbytes over n ranks; the first of equals."""
    return min(choices, key=lambda way: way.seconds(n, nbytes, link))


def adding(x: Any) -> tuple[Work]:
    """The work of adding a tensor to another: reads both, writes one."""
    dtype = str(x.dtype).removeprefix("torch.")
    return (Work(kind="vector", dtype=dtype, ops=prod(x.shape), bytes=3 * x.nbytes),)
