"""A burst: all requests at once, the load of offline batches.

Paper:  - (offline throughput, as every engine's benchmark measures it)
Idea:   every request arrives at time 0
Shapes: rng -> num_requests arrivals at 0 s
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
class Burst:
    """num_requests at once."""

    num_requests: int = 32
    lengths: Length = field(default_factory=Lognormal)

    def __post_init__(self) -> None:
        if self.num_requests < 1:
            raise RangeError(
                f"{self!r} cannot be offered", expected="num_requests >= 1", fix="Burst(num_requests=32)"
            )

    def arrivals(self, rng: np.random.Generator) -> list[Arrival]:
        return [Arrival(0.0, p, o) for p, o in self.lengths.draw(rng, self.num_requests)]
