"""A closed loop: each client sends its next request when it has its answer.

Paper:  - (the load of most engines' throughput benchmarks; "DeepSpeed-FastGen", 2024, uses it)
Idea:   client c sends requests c, c + clients, c + 2 clients, ... one after another
Shapes: rng -> num_requests arrivals, of which the first `clients` come at 0 s
Cost:   O(num_requests)
Claims: fastgen
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lightwork.errors import RangeError
from lightwork.serve.lengths import Length
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.loads import Arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """clients: requests that are there at any time. think_s: between an answer and the next request."""

    clients: int = 8
    num_requests: int = 64
    think_s: float = 0.0
    lengths: Length = field(default_factory=Lognormal)

    def __post_init__(self) -> None:
        if min(self.clients, self.num_requests) < 1 or self.think_s < 0:
            raise RangeError(
                f"{self!r} cannot be offered",
                expected="clients and num_requests >= 1, think_s >= 0",
                fix="ClosedLoop(clients=8)",
            )

    def arrivals(self, rng: np.random.Generator) -> list[Arrival]:
        drawn = self.lengths.draw(rng, self.num_requests)
        first = [Arrival(0.0, p, o) for p, o in drawn[: self.clients]]
        later = enumerate(drawn[self.clients :])
        return first + [Arrival(self.think_s, p, o, after=i) for i, (p, o) in later]
