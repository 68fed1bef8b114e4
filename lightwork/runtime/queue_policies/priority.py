"""Priority: the most urgent run; who is less urgent gives up its place and goes on where it was.

Paper:  "AIOS: LLM Agent Operating System", 2024 (schedulers are exchangeable; this one is classical)
Idea:   in order of priority, then of arrival; a running turn is over when somebody more urgent waits
Shapes: Turn -> rank; (running Turn, first Turn) -> whether first is more urgent
Cost:   O(1), and O(log waiting) for the queue
Claims: aios
"""

from __future__ import annotations

from dataclasses import dataclass

from lightwork.runtime.queue_policies import Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Priority:
    """preempt=False: whoever has a place keeps it to the end."""

    preempt: bool = True

    def rank(self, turn: Turn) -> tuple[int, int]:
        return (-turn.priority, turn.number)

    def over(self, running: Turn, first: Turn) -> bool:
        return self.preempt and first.priority > running.priority
