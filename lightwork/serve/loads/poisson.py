"""Poisson arrivals: requests come independently, at a constant mean rate.

Paper:  - (the standard open-loop model of independent users)
Idea:   exponential gaps of mean 1/rate
Shapes: rng -> num_requests arrivals
Cost:   O(num_requests)
Claims: sarathi
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lightwork.errors import RangeError
from lightwork.serve.lengths import Length
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.loads import Arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class Poisson:
    """Independent users. rate: requests per second."""

    rate: float = 4.0
    num_requests: int = 64
    lengths: Length = field(default_factory=Lognormal)

    def __post_init__(self) -> None:
        if min(self.rate, self.num_requests) <= 0:
            raise RangeError(f"{self!r} cannot be offered", expected="positive values", fix="Poisson(rate=4)")

    def arrivals(self, rng: np.random.Generator) -> list[Arrival]:
        at_s = np.cumsum(rng.exponential(1.0 / self.rate, self.num_requests))
        drawn = self.lengths.draw(rng, self.num_requests)
        return [Arrival(float(t), p, o) for t, (p, o) in zip(at_s, drawn, strict=True)]
