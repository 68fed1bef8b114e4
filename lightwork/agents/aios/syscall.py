"""One system call: who asked for what, when it waited, when it ran, what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["llm", "memory", "storage", "tool"]
Status = Literal["active", "executing", "suspending", "done"]
"""Waits for its first turn; has a turn; waits for another turn; has its response."""


@dataclass(slots=True, eq=False)
class Syscall:
    """A call of the process pid. name: of the model or tool. created_s, ended_s: when it was made, and had
    its response. starts_s, ends_s: of each of its turns. recomputed: tokens that a model read again to go on.
    response: a Reply or an Observation. error: "" if it went well.
    """

    id: int
    pid: int
    agent: str
    kind: Kind
    name: str
    created_s: float
    status: Status = "active"
    starts_s: list[float] = field(default_factory=list)
    ends_s: list[float] = field(default_factory=list)
    ended_s: float | None = None
    recomputed: int = 0
    response: Any = None
    error: str = ""

    @property
    def waiting_s(self) -> float:
        """Seconds without a turn; until its last turn, while it has no response."""
        if not self.starts_s:
            return 0.0 if self.ended_s is None else self.ended_s - self.created_s
        gaps = (start - end for end, start in zip(self.ends_s, self.starts_s[1:], strict=False))
        return self.starts_s[0] - self.created_s + sum(gaps)

    @property
    def turnaround_s(self) -> float | None:
        """Seconds from the call to its response; None before that."""
        return None if self.ended_s is None else self.ended_s - self.created_s

    def start(self, now_s: float) -> None:
        """A turn begins."""
        self.status = "executing"
        self.starts_s.append(now_s)

    def suspend(self, now_s: float) -> None:
        """The turn is over, the call is not."""
        self.status = "suspending"
        self.ends_s.append(now_s)

    def end(self, now_s: float, response: Any = None, error: str = "") -> None:
        """The response is there."""
        if len(self.ends_s) < len(self.starts_s):
            self.ends_s.append(now_s)
        self.status, self.ended_s = "done", now_s
        self.response, self.error = response, error
