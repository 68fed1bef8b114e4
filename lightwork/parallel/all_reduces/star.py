"""Star all-reduce: everybody sends to the first rank, which adds up and answers.

Paper:  "TPI-LLM: Serving 70B-scale LLMs Efficiently on Low-resource Edge Devices", 2024
Idea:   over slow links a sum is latency: two hops, however many ranks
Shapes: S bytes on each of n ranks -> their sum on all, added in the order of the ranks
Cost:   2a + 2(n-1)S/B seconds: n - 1 messages into the first rank, n - 1 out of it
Claims: tpi_llm
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import iadd
from typing import Any

from lightwork.cluster.devices import Link
from lightwork.parallel.all_reduces import adding
from lightwork.runtime.effects import Compute, Recv, Send


@dataclass(frozen=True, slots=True, kw_only=True)
class Star:
    """Two hops; ranks but the first meet nobody else."""

    async def sum(self, me: int, n: int, x: Any) -> Any:
        if me > 0:
            await Send(0, x)
            return await Recv(0, like=x)
        for rank in range(1, n):
            x = await Compute(adding(x), iadd, (x, await Recv(rank, like=x)), "add")
        for rank in range(1, n):
            await Send(rank, x)
        return x

    def seconds(self, n: int, nbytes: float, link: Link) -> float:
        return 2 * (link.latency_s + (n - 1) * nbytes / link.bytes_per_s) if n > 1 else 0.0
