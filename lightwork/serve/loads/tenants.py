"""Tenants: several loads at once, each of one who sends them.

Paper:  - (the load of every study of fairness)
Idea:   load i belongs to tenant i; arrivals are merged by time
Shapes: rng -> the arrivals of all loads
Cost:   O(n log n) of all arrivals
Claims: fastswitch
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightwork.errors import RangeError
from lightwork.serve.loads import Arrival, Load
from lightwork.serve.loads.poisson import Poisson


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenants:
    """loads: one per tenant."""

    loads: tuple[Load, ...] = (Poisson(rate=1.0), Poisson(rate=8.0))

    def __post_init__(self) -> None:
        if not self.loads:
            raise RangeError("Tenants has no loads", expected="at least one", fix="Tenants()")

    def arrivals(self, rng: np.random.Generator) -> list[Arrival]:
        streams = [np.random.default_rng(rng.integers(1 << 63)) for _ in self.loads]
        each = [load.arrivals(stream) for load, stream in zip(self.loads, streams, strict=True)]
        parts = [(t, i, a) for t, part in enumerate(each) for i, a in enumerate(part)]
        # Followers have no time of their own; they come behind those that have.
        parts.sort(key=lambda part: (part[2].after is not None, part[2].at_s))
        place = {(t, i): n for n, (t, i, _) in enumerate(parts)}
        return [
            a._replace(
                tenant=str(t),
                shared=a.shared * len(each) + t,
                after=None if a.after is None else place[t, a.after],
            )
            for t, _, a in parts
        ]
