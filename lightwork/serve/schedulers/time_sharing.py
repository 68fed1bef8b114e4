"""TimeSharing: a whole training sequence, there and back, between steps that serve.

Paper:  the baseline of "FlexLLM: A System for Co-Serving Large Language Model Inference and
        Parameter-Efficient Finetuning", 2024
Idea:   after every so many steps a step trains on the rest of a sequence, whoever waits meanwhile
Shapes: View(training) -> the inner scheduler's Step, some with slices
Cost:   as the inner scheduler
Claims: flexllm
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lightwork.errors import RangeError
from lightwork.serve.schedulers import Scheduler, Step, View
from lightwork.serve.schedulers.co_serve import MOST
from lightwork.serve.schedulers.sarathi import Sarathi


@dataclass(slots=True)
class State:
    """steps: since training had one."""

    inner: Any
    steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSharing:
    """every: steps that serve, for one that trains."""

    inner: Scheduler[Any] = field(default_factory=Sarathi)
    every: int = 64

    def __post_init__(self) -> None:
        if self.every < 1:
            raise RangeError(
                f"TimeSharing cannot train after every {self.every} steps",
                expected="at least 1",
                fix="TimeSharing(every=64)",
            )

    def init(self) -> State:
        return State(self.inner.init())

    def plan(self, state: State, view: View) -> Step:
        step = self.inner.plan(state.inner, view)
        state.steps += bool(step.chunks)
        if view.training is not None and (state.steps >= self.every or step.changes_nothing):
            step.slices = view.training.ahead(MOST)
            state.steps = 0
        return step
