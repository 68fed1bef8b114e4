"""Normal lengths around a mean, as DeepSpeed-FastGen's benchmark draws them.

Paper:  "DeepSpeed-FastGen: High-throughput Text Generation for LLMs via MII and DeepSpeed-Inference", 2024
Idea:   prompt and output are normal with a deviation that is a share of their mean
Shapes: (rng, num) -> num pairs of lengths
Cost:   O(num)
Claims: fastgen
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightwork.errors import RangeError
from lightwork.serve.lengths import Lengths, bounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Normal:
    """prompt, output: means in tokens. spread: deviation over mean. max_len: tokens of both together."""

    prompt: int = 2600
    output: int = 128
    spread: float = 0.3
    max_len: int = 1 << 20

    def __post_init__(self) -> None:
        if min(self.prompt, self.output) <= 0 or self.spread < 0:
            raise RangeError(
                f"{self!r} are no lengths", expected="positive means, spread >= 0", fix="Normal(prompt=2600)"
            )
        if self.max_len < 2:
            raise RangeError(f"max_len is {self.max_len}", expected="at least 2", fix="leave max_len out")

    def draw(self, rng: np.random.Generator, num: int) -> Lengths:
        prompts = rng.normal(self.prompt, self.spread * self.prompt, num)
        outputs = rng.normal(self.output, self.spread * self.output, num)
        return bounded(prompts, outputs, self.max_len)
