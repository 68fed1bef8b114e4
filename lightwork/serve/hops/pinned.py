"""Pinned: a request stays with the instances that it began with, where it cost all least.

Paper:  - (provisioning per model, and sharing of parameters alone: the baselines of "BlockLLM: Multi-tenant
        Finer-grained Serving for Large Language Models", 2024)
Idea:   blocks are placed once, by expected load; batches are bounded by one number for all
Shapes: candidates -> one of them; demands of blocks -> instances
Cost:   O(candidates) per request
Claims: blockllm
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lightwork.serve.hops import Candidate, Change, Choice, Demand, Instance, Stored
from lightwork.serve.hops._greedy import begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """rows: of a pass. kv_share: of memory, for keys and values."""

    rows: int = 512
    kv_share: float = 0.3

    def choose(self, candidates: Iterable[Candidate], budget: float) -> Choice:
        costs = []
        for i, candidate in enumerate(candidates):
            if candidate.owner:
                return Choice(i, "owner")
            if not candidate.loss:
                costs.append((candidate.wait_s + candidate.adds_s, i))
        assert costs, "a request's own block has an instance"
        return Choice(min(costs)[1], "transfer")

    def batch(self, seconds: Callable[[int], float]) -> int:
        return self.rows

    def place(
        self,
        demands: Sequence[Demand],
        blocks: Sequence[Stored],
        rooms: Sequence[float],
        instances: Sequence[Instance],
    ) -> list[Change]:
        return [] if instances else begin(demands, blocks, rooms, self.kv_share)
