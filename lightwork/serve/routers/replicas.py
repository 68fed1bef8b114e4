"""Replicas: copies of an engine, of which the least loaded takes the next request.

Paper:  - (least outstanding work; the balancer of "DeepSpeed-FastGen: High-throughput Text Generation for
        LLMs via MII and DeepSpeed-Inference", 2024, and of most others)
Idea:   a request goes where least is left to compute, and stays there
Shapes: Sequence -> number of an engine
Cost:   O(copies) per request
Claims: fastgen
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightwork.errors import RangeError
from lightwork.serve.routers import Member, Seat
from lightwork.serve.sequence import Sequence as Seq


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """copies: engines alike."""

    copies: int = 2

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise RangeError(f"copies is {self.copies}", expected="at least 1", fix="Replicas(copies=2)")

    def seats(self) -> list[Seat]:
        return [Seat()] * self.copies

    def init(self) -> None:
        return None

    def place(self, state: None, seq: Seq, members: Sequence[Member]) -> int:
        alive = [i for i, member in enumerate(members) if member.alive]
        return min(alive, key=lambda i: (members[i].tokens, i))

    def next(self, state: None, seq: Seq, at: int, members: Sequence[Member]) -> int:
        return at
