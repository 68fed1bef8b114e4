"""Flover: requests of every age share each step, and prompts have a lane of their own beside it.

Paper:  "Flover: A Temporal Fusion Framework for Efficient Autoregressive Model Parallel Inference", 2023; the
        rule by which a request joins is that of "Orca: A Distributed Serving System for Transformer-Based
        Generative Models", 2022
Idea:   weights are read once for all: each step has one token of every running sequence, so a request joins
        when its prompt is computed and leaves when it ends, and nobody waits for a batch. Prompts are
        computed whole, as many as the lane holds, in the pass that generates for the others
Shapes: View(waiting, running) -> Step of all decodes and whole prompts of up to `lane` tokens
Cost:   O(running + admitted) per step; a prompt longer than the lane runs alone in it and stalls the others
Claims: flover
Differs: the publication's prompts run on a stream of their own beside the generating one, and read the
        weights again. Here both are rows of one pass
"""

from __future__ import annotations

from dataclasses import dataclass

from lightwork.errors import RangeError
from lightwork.serve.schedulers import Step, StepPlan, View


@dataclass(frozen=True, slots=True, kw_only=True)
class Flover:
    """lane: prompt tokens per step."""

    lane: int = 512

    def __post_init__(self) -> None:
        if self.lane < 1:
            raise RangeError(
                f"Flover cannot run lane={self.lane} tokens", expected="lane >= 1", fix="Flover()"
            )

    def init(self) -> None:
        return None

    def plan(self, state: None, view: View) -> Step:
        step = StepPlan(view, self.lane + len(view.running))
        for seq in step.running(decoding=True):
            step.decode(seq)
        lane = step.room = min(step.room, self.lane)
        for seq in step.running(decoding=False):  # what was left to compute of a text that was fetched
            step.extend(seq)
        for seq in view.waiting:
            if (seq.left > step.room and step.room < lane) or not step.admit(seq, whole=True):
                break
        return step.step()
