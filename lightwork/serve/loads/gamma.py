"""Gamma arrivals: a constant mean rate, with bursts or more regular than chance.

Paper:  - (burstiness of recorded traces is commonly described by the variation of their gaps)
Idea:   gaps are gamma distributed with mean 1/rate and a coefficient of variation; 1 is Poisson
Shapes: rng -> num_requests arrivals
Cost:   O(num_requests)
Claims: -
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lightwork.errors import RangeError
from lightwork.serve.lengths import Length
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.loads import Arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class Gamma:
    """rate: requests per second. cv: deviation of the gaps over their mean."""

    rate: float = 4.0
    cv: float = 2.0
    num_requests: int = 64
    lengths: Length = field(default_factory=Lognormal)

    def __post_init__(self) -> None:
        if min(self.rate, self.cv, self.num_requests) <= 0:
            raise RangeError(f"{self!r} cannot be offered", expected="positive values", fix="Gamma(cv=2)")

    def arrivals(self, rng: np.random.Generator) -> list[Arrival]:
        shape = self.cv**-2
        at_s = np.cumsum(rng.gamma(shape, 1.0 / (self.rate * shape), self.num_requests))
        drawn = self.lengths.draw(rng, self.num_requests)
        return [Arrival(float(t), p, o) for t, (p, o) in zip(at_s, drawn, strict=True)]
