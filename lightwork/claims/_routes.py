"""Routing traces drawn at random: without memory, with a placement planted, of any affinity, of unlike texts.

One expert per token unless k says more; all experts of a layer are equally likely.
"""

from __future__ import annotations

import numpy as np

from lightwork.models.routing import RoutingTrace
from lightwork.parallel.expert_placement import ExpertPlacement

SWEEPS = 200
"""That make the rows and columns of a matrix add up to one, to some 1e-6."""


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


def markov_trace(
    num_tokens: int, num_layers: int, num_experts: int, sharpness: float, *, seed: int = 0
) -> RoutingTrace:
    """An expert depends on the one before it. Logits of what follows are normal with the standard deviation
    `sharpness`: with 0 all is as likely, with much each expert has one successor."""
    rng = np.random.default_rng(seed)
    follows = np.exp(sharpness * rng.standard_normal((num_layers - 1, num_experts, num_experts)))
    for _ in range(SWEEPS):
        follows /= follows.sum(1, keepdims=True)
        follows /= follows.sum(2, keepdims=True)
    chosen = rng.integers(num_experts, size=(num_tokens, num_layers))
    for layer in range(1, num_layers):
        upto = follows[layer - 1].cumsum(1)[chosen[:, layer - 1]]
        passed = rng.random((num_tokens, 1)) > upto
        chosen[:, layer] = passed.sum(1).clip(max=num_experts - 1)
    return RoutingTrace(
        chosen_NLK=chosen[..., None], num_experts=num_experts, layers=tuple(range(num_layers))
    )


def texts_trace(
    num_texts: int, text_len: int, num_layers: int, num_experts: int, *, k: int = 2, seed: int = 0
) -> RoutingTrace:
    """Each text takes half of a layer's experts eight times as often as the others; which half is its own."""
    rng = np.random.default_rng(seed)
    chosen = np.empty((num_texts * text_len, num_layers, k), np.int64)
    for n in range(0, len(chosen), text_len):
        for layer in range(num_layers):
            weight = np.where(rng.permutation(num_experts) < num_experts // 2, 8.0, 1.0)
            drawn = rng.exponential(size=(text_len, num_experts)) / weight  # smallest first: by weight
            chosen[n : n + text_len, layer] = drawn.argsort(1)[:, :k]
    return RoutingTrace(chosen_NLK=chosen, num_experts=num_experts, layers=tuple(range(num_layers)))
