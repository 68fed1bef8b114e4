"""Routing traces drawn at random: of routers without memory, and of ones with a placement planted in them."""

from __future__ import annotations

import numpy as np

from lightwork.models.routing import RoutingTrace
from lightwork.parallel.expert_placement import ExpertPlacement


def iid_trace(
    num_tokens: int, num_layers: int, num_experts: int, *, k: int = 1, seed: int = 0
) -> RoutingTrace:
    """Every expert as likely in every layer, whatever came before."""
    rng = np.random.default_rng(seed)
    chosen = rng.random((num_tokens, num_layers, num_experts)).argsort(-1)[..., :k]
    return RoutingTrace(chosen_NLK=chosen, num_experts=num_experts, layers=tuple(range(num_layers)))


def planted_trace(
    num_tokens: int, num_layers: int, num_experts: int, num_ranks: int, *, stay: float = 0.65, seed: int = 0
) -> tuple[RoutingTrace, ExpertPlacement]:
    """Experts belong to hidden groups: a share `stay` of steps remains in its group, others go anywhere."""
    rng = np.random.default_rng(seed)
    share = num_experts // num_ranks
    dealt = np.repeat(np.arange(num_ranks), share)
    hidden = np.stack([rng.permutation(dealt) for _ in range(num_layers)])
    members = np.argsort(hidden, axis=1, kind="stable").reshape(num_layers, num_ranks, share)
    chosen = rng.integers(num_experts, size=(num_tokens, num_layers))
    for layer in range(1, num_layers):
        group = hidden[layer - 1][chosen[:, layer - 1]]
        inside = members[layer][group, rng.integers(share, size=num_tokens)]
        chosen[:, layer] = np.where(rng.random(num_tokens) < stay, inside, chosen[:, layer])
    trace = RoutingTrace(
        chosen_NLK=chosen[..., None], num_experts=num_experts, layers=tuple(range(num_layers))
    )
    return trace, ExpertPlacement(rank_LE=hidden, num_ranks=num_ranks)
