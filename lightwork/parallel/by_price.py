"""An all-reduce that takes, for each sum, the way that is quickest over a link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightwork.cluster.devices import Link
from lightwork.parallel.all_reduces import AllReduce, quickest
from lightwork.parallel.all_reduces.direct import Direct
from lightwork.parallel.all_reduces.ring import Ring
from lightwork.parallel.all_reduces.star import Star

LOOPBACK = Link(name="loopback", a="device", b="device", bytes_per_s=2e9, latency_s=50e-6)
"""Between processes of one machine. Assumed: what a blocking message of Python and gloo takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ByPrice:
    """An `AllReduce`. ways: to choose from; all ranks have the same sizes, so they choose alike."""

    link: Link = LOOPBACK
    ways: Sequence[AllReduce] = (Star(), Ring(), Direct())

    async def sum(self, me: int, n: int, x: Any) -> Any:
        return await quickest(self.ways, n, x.nbytes, self.link).sum(me, n, x)

    def seconds(self, n: int, nbytes: float, link: Link) -> float:
        return quickest(self.ways, n, nbytes, self.link).seconds(n, nbytes, link)
