"""Dynamic SplitFuse (DeepSpeed-FastGen): every forward pass has the same number of tokens.

Paper:  "DeepSpeed-FastGen: High-throughput Text Generation for LLMs via MII and DeepSpeed-Inference", 2024
Idea:   tokens being generated first, then prompts, composed and split so that they fill the pass exactly. A
        decode without a free block sits the pass out; only when nothing can run is the youngest preempted,
        to the end of the queue
Shapes: View(waiting, running) -> Step of exactly `tokens` while there is work for it
Cost:   O(running + admitted) per step
Claims: fastgen
"""

from __future__ import annotations

from dataclasses import dataclass

from lightwork.errors import RangeError
from lightwork.serve.schedulers import Step, StepPlan, View


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFuse:
    """tokens: of a forward pass (its authors' engine: 768)."""

    tokens: int = 768

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise RangeError(
                f"SplitFuse cannot run tokens={self.tokens}", expected="tokens >= 1", fix="SplitFuse()"
            )

    def init(self) -> None:
        return None

    def plan(self, state: None, view: View) -> Step:
        step = StepPlan(view, self.tokens, watermark=0.0, requeue="back")
        decodes = step.running(decoding=True)
        if len(decodes) > self.tokens:
            decodes = sorted(decodes, key=lambda seq: seq.num_output)[: self.tokens]
        for seq in decodes:
            step.decode(seq, preempt=False)
        for seq in step.running(decoding=False):
            step.extend(seq)
        for seq in view.waiting:
            if step.room <= 0 or not step.admit(seq):
                break
        stuck = step.room == self.tokens and not any(seq.busy for seq in view.running)
        if stuck and decodes:  # whoever came last gives up its blocks
            step.preempt(decodes[-1])
        return step.step()
