"""Adapters: small changes to a model's matrices, of which each request has its own or none.

Interface: `Adapters.read(spec)`, what is there when a server starts; `models.adapter_set` holds them, and
what is added to them since. To add one: a file with a frozen dataclass named after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lightwork.models.spec import ModelSpec

__all__ = ["Adapter", "Adapters", "Delta"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What is added to one matrix: scale * b a. a [rank, inputs], b [outputs, rank], float32."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scale: float

    @property
    def rank(self) -> int:
        return len(self.a)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """deltas: by the path of their matrix in the checkpoint (`parts.Module`); the others stay as they are."""

    name: str
    deltas: Mapping[str, Delta]

    @property
    def rank(self) -> int:
        """The largest."""
        return max(delta.rank for delta in self.deltas.values())

    @property
    def nbytes(self) -> int:
        return sum(delta.a.nbytes + delta.b.nbytes for delta in self.deltas.values())


class Adapters(Protocol):
    """Where a server's adapters come from."""

    def read(self, spec: ModelSpec) -> Sequence[Adapter]:
        """Those for a model of this shape, each under a name of its own. Raises CheckpointError."""
        ...
