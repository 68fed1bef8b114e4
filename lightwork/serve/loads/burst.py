"""A burst: all requests at once, the load of offline batches.

Paper:  - (offline throughput, as every engine's benchmark measures it)
Idea:   every request arrives at time 0; lognormal lengths around their medians
Shapes: rng -> num_requests arrivals at 0 s
Cost:   O(num_requests)
Claims: -
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightwork.errors import RangeError
from lightwork.serve.loads import Arrival, lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """prompt, output: median lengths in tokens. prompt_sigma,
    output_sigma: spread of their logarithms."""

    num_requests: int = 32
    prompt: int = 256
    output: int = 64
    prompt_sigma: float = 0.0
    output_sigma: float = 0.0

    def __post_init__(self) -> None:
        if min(self.num_requests, self.prompt, self.output) <= 0 or not self._spread_ok:
            raise RangeError(
                f"{self!r} cannot be offered", expected="positive values", fix="Burst(num_requests=32)"
            )

    @property
    def _spread_ok(self) -> bool:
        return min(self.prompt_sigma, self.output_sigma) >= 0

    def arrivals(self, rng: np.random.Generator) -> list[Arrival]:
        prompts = lengths(rng, self.prompt, self.prompt_sigma, self.num_requests)
        outputs = lengths(rng, self.output, self.output_sigma, self.num_requests)
        return [Arrival(0.0, p, o) for p, o in zip(prompts, outputs, strict=True)]
