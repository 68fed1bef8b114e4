"""The kind of technique that makes the experts of a trained model smaller, or fewer.

What comes back is a model that any forward runs, with the numbers that would be stored; `expert_bytes` says
how many bytes that takes. None is lossless: measure the loss before and after.

L layers that have experts  E experts of a layer
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lightwork.models.spec import ModelSpec
from lightwork.models.weights import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How some text used the experts. loads_LE: rows that each computed. outputs_LE: gates times lengths of
    what it gave, summed over those rows: what it added to the residual stream."""

    loads_LE: NDArray[np.int64]
    outputs_LE: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """A model after compression. expert_bytes: of all its experts as they would be stored."""

    weights: Weights
    spec: ModelSpec
    expert_bytes: int


class Compression(Protocol):
    """Leaves the weights it is given as they are; those that it does not change may be shared."""

    def compress(self, weights: Weights, spec: ModelSpec, usage: Usage) -> Compressed: ...
