"""Static batches: whoever waits is served together, and who comes later waits until all of them have ended.

Paper:  - (request-level scheduling, as in FasterTransformer behind a dynamic batcher: the baseline of "Orca:
        A Distributed Serving System for Transformer-Based Generative Models", 2022, and of Flover, 2023)
Idea:   when nobody runs, the next `size` of the queue are admitted; otherwise all that run are gone on with
Shapes: View(waiting, running) -> Step of whole prompts, or of decodes
Cost:   O(running + admitted) per step; a batch lasts as long as its longest output
Claims: flover
Differs: who has ended takes no part in later steps, where FasterTransformer computes it to the batch's end
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from lightwork.errors import RangeError
from lightwork.serve.schedulers import Step, StepPlan, View


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticBatches:
    """size: the most sequences of a batch. 1: one after another."""

    size: int = 32

    def __post_init__(self) -> None:
        if self.size < 1:
            raise RangeError(
                f"StaticBatches cannot run size={self.size}", expected="size >= 1", fix="StaticBatches()"
            )

    def init(self) -> None:
        return None

    def plan(self, state: None, view: View) -> Step:
        step = StepPlan(view, self.size * view.limits.max_len)
        for seq in step.running(decoding=True):
            step.decode(seq)
        for seq in step.running(decoding=False):  # what was left to compute of a text that was fetched
            step.extend(seq)
        if not view.running:
            for seq in islice(view.waiting, self.size):
                if not step.admit(seq, whole=True):
                    break
        return step.step()
