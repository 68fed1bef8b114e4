"""Poisson arrivals: requests come independently, at a constant mean rate.

Paper:  - (the standard open-loop model of independent users)
Idea:   exponential gaps of mean 1/rate; lognormal prompt and output lengths around their medians
Shapes: rng -> num_requests arrivals
Cost:   O(num_requests)
Claims: sarathi
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightwork.errors import RangeError
from lightwork.serve.loads import Arrival, lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Poisson:
    """Independent users.

    rate: requests per second. prompt, output: median lengths in tokens. prompt_sigma,
    output_sigma: spread of their logarithms.
    """

    rate: float = 4.0
    num_requests: int = 64
    prompt: int = 256
    output: int = 64
    prompt_sigma: float = 0.0
    output_sigma: float = 0.0
    max_len: int = 1 << 20

    def __post_init__(self) -> None:
        if min(self.rate, self.num_requests, self.prompt, self.output) <= 0 or not self._spread_ok:
            raise RangeError(f"{self!r} cannot be offered", expected="positive values", fix="Poisson(rate=4)")

    @property
    def _spread_ok(self) -> bool:
        return min(self.prompt_sigma, self.output_sigma) >= 0

    def arrivals(self, rng: np.random.Generator) -> list[Arrival]:
        at_s = np.cumsum(rng.exponential(1.0 / self.rate, self.num_requests))
        prompts = lengths(rng, self.prompt, self.prompt_sigma, self.num_requests, max(1, self.max_len - 1))
        outputs = lengths(rng, self.output, self.output_sigma, self.num_requests)
        return [
            Arrival(float(t), p, max(1, min(o, self.max_len - p)))
            for t, p, o in zip(at_s, prompts, outputs, strict=True)
        ]
