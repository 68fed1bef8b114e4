"""Sarathi-Serve: chunked prefills that never stall a decode.

Paper:  "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve", 2024
Idea:   a step has a token budget; each decode takes one token, unfinished prompts share the rest, new ones
        what is left
Shapes: View(waiting, running) -> Step with at most `chunk` tokens
Cost:   O(running + admitted) per step, no work proportional to context length
Claims: sarathi
"""

from __future__ import annotations

from dataclasses import dataclass

from lightwork.errors import RangeError
from lightwork.serve.schedulers import Step, StepPlan, View


@dataclass(frozen=True, slots=True, kw_only=True)
class Sarathi:
    """Stall-free batching.

    chunk: tokens per step (the paper: 512 for strict, 2048 for relaxed objectives).
    """

    chunk: int = 512

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise RangeError(
                f"Sarathi cannot run chunk={self.chunk} tokens", expected="chunk >= 1", fix="Sarathi()"
            )

    def init(self) -> None:
        return None

    def plan(self, state: None, view: View) -> Step:
        step = StepPlan(view, self.chunk)
        # More decodes than budget: least output first, so each is served within ceil(decodes / chunk) steps.
        decodes = step.running(decoding=True)
        if len(decodes) > self.chunk:
            decodes = sorted(decodes, key=lambda seq: seq.num_output)[: self.chunk]
        for seq in decodes:
            step.decode(seq)
        for seq in step.running(decoding=False):
            step.extend(seq)
        for seq in view.waiting:
            if step.room <= 0 or not step.admit(seq):
                break
        return step.step()
