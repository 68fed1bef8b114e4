"""Direct all-reduce: everybody sends to everybody, and each rank adds up for itself.

Paper:  "Optimization of Collective Communication Operations in MPICH", 2005 (where small messages go so)
Idea:   one hop, for n times as many messages in all
Shapes: S bytes on each of n ranks -> their sum on all, added in the order of the ranks
Cost:   a + (n-1)S/B seconds on links of their own; n(n-1) messages in all, which a medium shared by all pays
Claims: tpi_llm
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import add
from typing import Any

from lightwork.cluster.devices import Link
from lightwork.parallel.all_reduces import adding
from lightwork.runtime.effects import Compute, Recv, Send


@dataclass(frozen=True, slots=True, kw_only=True)
class Direct:
    """One hop."""

    async def sum(self, me: int, n: int, x: Any) -> Any:
        for step in range(1, n):
            await Send((me + step) % n, x)
        total = x if me == 0 else await Recv(0, like=x)
        for rank in range(1, n):
            term = x if rank == me else await Recv(rank, like=x)
            total = await Compute(adding(total), add, (total, term), "add")
        return total

    def seconds(self, n: int, nbytes: float, link: Link) -> float:
        return link.latency_s + (n - 1) * nbytes / link.bytes_per_s if n > 1 else 0.0
