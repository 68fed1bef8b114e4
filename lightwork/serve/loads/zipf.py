"""Zipf: each request is for one of several models, of which the first are asked most.

Paper:  - (how often adapters and experts are asked; "S-LoRA", 2023, draws them by a power law)
Idea:   the i-th model is asked in proportion to 1 / i^skew; a conversation stays with its model
Shapes: rng -> the inner load's arrivals, each with a model
Cost:   O(arrivals)
Claims: sn40l
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lightwork.errors import RangeError
from lightwork.serve.loads import Arrival, Load
from lightwork.serve.loads.poisson import Poisson


@dataclass(frozen=True, slots=True, kw_only=True)
class Zipf:
    """models: names of adapters or experts; "" is the model that they are served beside. skew: 0 asks all
    alike."""

    models: tuple[str, ...] = ("",)
    skew: float = 1.0
    inner: Load = field(default_factory=Poisson)

    def __post_init__(self) -> None:
        if not self.models or not self.skew >= 0:
            raise RangeError(
                f"{self!r} cannot be offered",
                expected="a model or more, and skew >= 0",
                fix="Zipf(models=('', 'one'), skew=1.0)",
            )

    def arrivals(self, rng: np.random.Generator) -> list[Arrival]:
        came = self.inner.arrivals(rng)
        shares = np.arange(1, len(self.models) + 1) ** -self.skew
        drawn = rng.choice(len(self.models), len(came), p=shares / shares.sum()).tolist()
        return [a._replace(model=self.models[drawn[_first(came, i)]]) for i, a in enumerate(came)]


def _first(came: Sequence[Arrival], i: int) -> int:
    """The first arrival of the conversation that this one continues."""
    while came[i].continues:
        before = came[i].after
        assert before is not None
        i = before
    return i
