"""Lognormal lengths: most texts are short, a few are very long.

Paper:  - (what recorded prompts and answers look like, to a first approximation)
Idea:   the logarithms of prompt and output length are normal, around medians
Shapes: (rng, num) -> num pairs of lengths
Cost:   O(num)
Claims: sarathi
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightwork.errors import RangeError
from lightwork.serve.lengths import Lengths, bounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Lognormal:
    """prompt, output: medians in tokens. prompt_sigma, output_sigma: spread of their logarithms.

    max_len: tokens of a prompt and its output together.
    """

    prompt: int = 256
    output: int = 64
    prompt_sigma: float = 0.0
    output_sigma: float = 0.0
    max_len: int = 1 << 20

    def __post_init__(self) -> None:
        if min(self.prompt, self.output) <= 0 or min(self.prompt_sigma, self.output_sigma) < 0:
            raise RangeError(
                f"{self!r} are no lengths",
                expected="positive medians, sigmas of at least 0",
                fix="Lognormal()",
            )
        if self.max_len < 2:
            raise RangeError(f"max_len is {self.max_len}", expected="at least 2", fix="leave max_len out")

    def draw(self, rng: np.random.Generator, num: int) -> Lengths:
        prompts = self.prompt * np.exp(self.prompt_sigma * rng.standard_normal(num))
        outputs = self.output * np.exp(self.output_sigma * rng.standard_normal(num))
        return bounded(prompts, outputs, self.max_len)
