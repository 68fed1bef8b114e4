"""The kind of technique that says which experts of the next layer a token will take, before it is there.

What is right is on its way while the present layer computes; what is wrong costs a copy, and a place in the
cache of the next layer.

L layers that have experts  E experts of a layer  K experts that a token takes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lightwork.models.routing import RoutingTrace

S = TypeVar("S")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A token in one of the layers that have experts.

    path_LK: int64, the experts it has taken from the first of these layers to this one. next_E: the next
    router's probabilities for what this layer's experts are given; None if nobody computed them.
    """

    path_LK: NDArray[np.int64]
    next_E: NDArray[np.float32] | None = None

    @property
    def layer(self) -> int:
        """Which one of the layers that have experts."""
        return len(self.path_LK) - 1


class Predictor(Protocol[S]):
    """What will be needed next. Deterministic, without side effects."""

    def init(self, history: RoutingTrace) -> S:
        """What there is to know of an earlier run."""
        ...

    def predict(self, state: S, seen: Seen, num: int) -> Sequence[int]:
        """`num` experts of the next layer that has any, the most probable first."""
        ...
