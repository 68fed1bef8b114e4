"""RoundRobin: after a quantum of service the place goes to the next, and the turn joins the tail.

Paper:  "AIOS: LLM Agent Operating System", 2024 (its RR scheduler)
Idea:   a short call waits for a quantum of each one before it, never for the whole of a long one; a turn that
        is over while nobody waits goes on
Shapes: Turn -> rank; (running Turn, first Turn) -> whether its quantum is used up
Cost:   O(1), and O(log waiting) for the queue
Claims: aios
Differs: the quantum may be tokens, so that the same calls change places at the same tokens on every machine
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightwork.errors import RangeError
from lightwork.runtime.queue_policies import Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin:
    """quantum: of output tokens, or of seconds (the publication: 1 s)."""

    quantum: float = 16
    unit: Literal["tokens", "seconds"] = "tokens"

    def __post_init__(self) -> None:
        if not self.quantum > 0:
            raise RangeError(
                f"RoundRobin cannot give quanta of {self.quantum:g} {self.unit}",
                expected="quantum > 0",
                fix="RoundRobin(quantum=16)",
            )

    def rank(self, turn: Turn) -> tuple[int, int]:
        return (0, turn.joined)

    def over(self, running: Turn, first: Turn) -> bool:
        used = running.tokens if self.unit == "tokens" else running.seconds
        return used >= self.quantum
