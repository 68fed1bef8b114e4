"""Prefill-first: iteration-level batching in which prompts win, the classical baseline.

Paper:  "Orca: A Distributed Serving System for Transformer-Based Generative Models", 2022, in the form
        popular engines gave it in 2023 ("Efficient Memory Management for Large Language Model Serving with
        PagedAttention")
Idea:   a step is either whole prompts or one token of every running sequence; while prompts wait and fit,
        they go first
Shapes: View(waiting, running) -> Step of whole prompts up to `max_tokens`, or of decodes
Cost:   O(running + admitted) per step; a long prompt stalls every decode for as long as it takes
Claims: sarathi
"""

from __future__ import annotations

from dataclasses import dataclass

from lightwork.errors import RangeError
from lightwork.serve.schedulers import Step, StepPlan, View


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillFirst:
    """Whole prompts first. max_tokens: prompt tokens per step; a longer prompt runs alone."""

    max_tokens: int = 4096

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise RangeError(
                f"PrefillFirst cannot run max_tokens={self.max_tokens}",
                expected="max_tokens >= 1",
                fix="PrefillFirst()",
            )

    def init(self) -> None:
        return None

    def plan(self, state: None, view: View) -> Step:
        step = StepPlan(view, self.max_tokens)
        for seq in step.running(decoding=False):  # what was left to compute of a text that was fetched
            step.extend(seq)
        for seq in view.waiting:
            first = step.room == self.max_tokens
            if (seq.left > step.room and not first) or not step.admit(seq, whole=True):
                break
        if step.room == self.max_tokens:
            for seq in step.running(decoding=True):
                step.decode(seq)
        return step.step()
