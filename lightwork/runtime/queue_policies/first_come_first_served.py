"""FirstComeFirstServed: whoever has a place keeps it to the end.

Paper:  "AIOS: LLM Agent Operating System", 2024 (its FIFO scheduler)
Idea:   in order of arrival, each to completion; nothing waits for a batch to fill or a poll to come round
Shapes: Turn -> rank; (running Turn, first Turn) -> False
Cost:   O(1), and O(log waiting) for the queue
Claims: aios
"""

from __future__ import annotations

from dataclasses import dataclass

from lightwork.runtime.queue_policies import Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstComeFirstServed:
    """Run to completion."""

    def rank(self, turn: Turn) -> tuple[int, int]:
        return (0, turn.number)

    def over(self, running: Turn, first: Turn) -> bool:
        return False
