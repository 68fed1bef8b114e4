"""Which rank holds which expert.

N tokens  L layers that have experts  E experts of a layer  G ranks
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import RangeError
from lightwork.models.routing import RoutingTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertPlacement:
    """rank_LE: int64, the rank of each expert; every rank has equally many of every layer.

    Raises RangeError for what does not: which layer, which rank and how many.
    """

    rank_LE: NDArray[np.int64]
    num_ranks: int

    def __post_init__(self) -> None:
        share = experts_per_rank(self.rank_LE.shape[1], self.num_ranks)
        for layer, ranks in enumerate(self.rank_LE):
            held = np.bincount(ranks, minlength=self.num_ranks)
            if len(held) != self.num_ranks or (held != share).any():
                rank = int(np.argmax(held != share))
                raise RangeError(
                    f"rank {rank} of {self.num_ranks} holds {held[rank]} experts of layer {layer}",
                    expected=f"{share} on each rank",
                )

    @classmethod
    def in_order(cls, num_layers: int, num_experts: int, num_ranks: int) -> ExpertPlacement:
        """The first experts of all layers on the first rank, and so on: where they are without a reason."""
        ranks = np.arange(num_experts) // experts_per_rank(num_experts, num_ranks)
        return cls(rank_LE=np.tile(ranks, (num_layers, 1)), num_ranks=num_ranks)

    def crossings(self, trace: RoutingTrace, per_node: int = 1) -> float:
        """How often a token changes its rank from layer to layer, per token; by nodes, with so many ranks in
        each. There are L - 1 chances."""
        at_NL = np.take_along_axis(self.rank_LE, trace.first_NL.T, 1).T // per_node
        return float((at_NL[:, 1:] != at_NL[:, :-1]).sum(1).mean())

    def local_fraction(self, trace: RoutingTrace) -> float:
        """The share of steps from layer to layer in which a token stays on its rank, 0 to 1."""
        return 1.0 - self.crossings(trace) / (len(self.rank_LE) - 1)


def experts_per_rank(num_experts: int, num_ranks: int) -> int:
    """Raises RangeError if experts cannot be dealt evenly."""
    if num_ranks < 1 or num_experts % num_ranks:
        raise RangeError(
            f"{num_experts} experts of a layer cannot be dealt evenly to {num_ranks} ranks",
            expected=f"a number of ranks that divides {num_experts}",
        )
    return num_experts // num_ranks
