"""Microbatches: what runs is divided into as many steps as a pipeline has stages.

Paper:  "EnergonAI: An Inference System for 10-100 Billion Parameter Transformer Models", 2022 (its batch
        manager, which decides what goes down the pipeline together)
Idea:   a sequence is in one step at a time, so one step with all of them would leave all stages but one
        without work; each step is offered its share of those that run, oldest first, and the rest waits for
        the next, which follows at once
Shapes: View -> the inner scheduler's Step, with at most ceil(running / stages) of those that run, and with
        whom it admits
Cost:   O(running) per step
Claims: energonai
Differs: the paper's batches are whole requests of one length; these are formed anew for each step
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lightwork.errors import RangeError
from lightwork.serve.schedulers import Scheduler, Step, View
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Sequence as Seq


@dataclass(frozen=True, slots=True, kw_only=True)
class Microbatches:
    """stages: steps that are to be under way at once. The inner scheduler does not see who has to wait."""

    inner: Scheduler[Any] = field(default_factory=Sarathi)
    stages: int = 2

    def __post_init__(self) -> None:
        if self.stages < 1:
            raise RangeError(
                f"Microbatches of stages={self.stages}", expected="stages >= 1", fix="Microbatches(stages=2)"
            )

    def init(self) -> Any:
        return self.inner.init()

    def plan(self, state: Any, view: View) -> Step:
        room = -(-len(view.running) // self.stages)
        shown: list[Seq] = []
        for seq in view.running:
            if seq.busy or room > 0:
                room -= not seq.busy
                shown.append(seq)
        hidden = len(view.running) - len(shown)
        limits = replace(view.limits, max_seqs=view.limits.max_seqs - hidden)
        return self.inner.plan(state, replace(view, running=shown, limits=limits))
