"""Placement of experts by affinity: tokens that take one expert find the next one on the same rank.

Paper:  "Exploiting Inter-Layer Expert Affinity for Accelerating Mixture-of-Experts Model Inference", 2024
Idea:   routers of trained models take experts of neighbouring layers together; a trace says which, and
        experts are placed so that as few tokens as possible cross ranks, or nodes, from layer to layer
Shapes: Affinity [L - 1, E, E], G ranks -> the rank of each expert [L, E], E/G of each layer on each rank
Cost:   sweeps x L assignments of E experts, O(E^3) each: 0.3 s for 24 layers of 64
Claims: exflow
Differs: the paper solves an integer program. With its two neighbours given, a layer is an assignment problem,
        solved exactly; layers take turns until none can be improved, from several starts

L layers that have experts  E experts of a layer  G ranks
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import MissingExtraError, RangeError
from lightwork.models.routing import Affinity
from lightwork.parallel.expert_placement import ExpertPlacement, experts_per_rank

STARTS = 8
SMALLEST_GAIN = 1e-12
"""A sweep must lower the cost by more than rounding can."""

Ranks = NDArray[np.int64]


def distances(num_ranks: int, per_node: int | None = None, across: float = 1.0) -> NDArray[np.float64]:
    """What it costs a token to go from rank to rank, [G, G]: 0 to stay, 1 inside a node, `across` between
    nodes of per_node ranks. Raises RangeError if nodes are not full."""
    per_node = per_node or num_ranks
    if num_ranks % per_node:
        raise RangeError(f"{num_ranks} ranks do not fill nodes of {per_node}", expected="whole nodes")
    node = np.arange(num_ranks) // per_node
    return np.where(node[:, None] == node, 1.0, across) * (1.0 - np.eye(num_ranks))


def cost(affinity: Affinity, rank_LE: Ranks, distance_GG: NDArray[np.float64]) -> float:
    """Of all layers, what tokens pay on their way, per token."""
    paid = affinity.joint_LEE * distance_GG[rank_LE[:-1, :, None], rank_LE[1:, None, :]]
    return float(paid.sum())


def place(
    affinity: Affinity, distance_GG: NDArray[np.float64], *, starts: int = STARTS, seed: int = 0
) -> ExpertPlacement:
    """The best placement found for the ranks that these distances are between. seed: of the starts.

    Raises RangeError if experts cannot be dealt evenly; MissingExtraError without scipy.
    """
    num_ranks = len(distance_GG)
    share = experts_per_rank(affinity.num_experts, num_ranks)
    rng = np.random.default_rng(seed)
    dealt = np.repeat(np.arange(num_ranks), share)
    best, least = None, np.inf
    for _ in range(starts):
        found = _settled(affinity, distance_GG, rng.permutation(dealt))
        paid = cost(affinity, found, distance_GG)
        if paid < least - SMALLEST_GAIN:
            best, least = found, paid
    if best is None:
        raise RangeError(f"{starts} starts", expected="at least 1")
    return ExpertPlacement(rank_LE=best, num_ranks=num_ranks)


def _settled(affinity: Affinity, distance_GG: NDArray[np.float64], first_E: Ranks) -> Ranks:
    """From a first layer, each next one as suits the one before it; then sweeps until nothing improves."""
    num_layers = affinity.num_layers
    rank_LE = np.full((num_layers, affinity.num_experts), -1)
    rank_LE[0] = first_E
    _sweep(affinity, distance_GG, rank_LE, range(1, num_layers), ahead=False)
    paid = cost(affinity, rank_LE, distance_GG)
    while True:
        _sweep(affinity, distance_GG, rank_LE, range(num_layers - 1, -1, -1))
        _sweep(affinity, distance_GG, rank_LE, range(1, num_layers))
        now = cost(affinity, rank_LE, distance_GG)
        if now >= paid - SMALLEST_GAIN:
            return rank_LE
        paid = now


def _sweep(
    affinity: Affinity,
    distance_GG: NDArray[np.float64],
    rank_LE: Ranks,
    layers: Sequence[int],
    *,
    ahead: bool = True,
) -> None:
    """Place layers anew, in place, each between its neighbours as they are then; ahead: the next one too."""
    for layer in layers:
        paid_EG = np.zeros((affinity.num_experts, len(distance_GG)))
        if layer > 0:
            paid_EG += affinity.joint_LEE[layer - 1].T @ distance_GG[rank_LE[layer - 1]]
        if ahead and layer + 1 < affinity.num_layers:
            paid_EG += affinity.joint_LEE[layer] @ distance_GG[rank_LE[layer + 1]]
        rank_LE[layer] = _assigned(paid_EG)


def _assigned(paid_EG: NDArray[np.float64]) -> Ranks:
    """The cheapest rank for every expert when all ranks take equally many."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ModuleNotFoundError:
        raise MissingExtraError("scipy", "plan") from None
    num_experts, num_ranks = paid_EG.shape
    _, places = linear_sum_assignment(np.repeat(paid_EG, num_experts // num_ranks, 1))
    ranks: Ranks = places // (num_experts // num_ranks)
    return ranks
