"""Train the classifier that reads a prompt and names an expert (serve/prompt_router.py), on labelled prompts.

Softmax regression by gradient descent with momentum on all prompts at once. An eighth of the prompts is not
trained on; how sure the router is of those it gets right says from when on an expert is chosen.

K experts  D features  N prompts
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lightwork.errors import UsageError
from lightwork.serve.prompt_router import FEATURES, PromptRouter, features

STEPS, RATE, MOMENTUM, DECAY = 100, 30.0, 0.9, 1e-5
HELD_OUT = 8
SURE = 0.02
"""The share of held-out prompts, rightly routed, of which the router may be too unsure."""


def train_router(prompts: Mapping[str, Sequence[Sequence[int]]], *, seed: int = 0) -> PromptRouter:
    """prompts: of each expert, as tokens. Raises UsageError for fewer than two experts, or than 8 prompts."""
    names = tuple(sorted(prompts))
    if len(names) < 2 or min(map(len, prompts.values())) < HELD_OUT:
        raise UsageError(
            f"a router cannot be trained for {len(names)} experts of so few prompts",
            expected=f"at least 2 experts, and {HELD_OUT} prompts of each",
            fix="give more prompts",
        )
    x_ND = np.stack([features(p) for name in names for p in prompts[name]])
    labels_N = np.repeat(np.arange(len(names)), [len(prompts[name]) for name in names])
    order = np.random.default_rng(seed).permutation(len(labels_N))
    held, kept = order[: len(order) // HELD_OUT], order[len(order) // HELD_OUT :]
    router = PromptRouter(
        names=names,
        weights=np.zeros((len(names), FEATURES), np.float32),
        bias=np.zeros(len(names), np.float32),
        least=0.0,
    )
    x_ND, labels_N, held_ND, held_N = x_ND[kept], labels_N[kept], x_ND[held], labels_N[held]
    wanted_NK = np.eye(len(names), dtype=np.float32)[labels_N]
    x_DN = np.ascontiguousarray(x_ND.T)  # four times as fast to multiply as the transposed view
    moved_KD, moved_K = np.zeros_like(router.weights), np.zeros_like(router.bias)
    for _ in range(STEPS):
        error_NK = (router.chances(x_ND) - wanted_NK) / len(labels_N)
        moved_KD = MOMENTUM * moved_KD + (x_DN @ error_NK).T + DECAY * router.weights
        moved_K = MOMENTUM * moved_K + error_NK.sum(0)
        router.weights[:] -= RATE * moved_KD
        router.bias[:] -= RATE * moved_K
    chances_NK = router.chances(held_ND)
    right = chances_NK.max(-1)[chances_NK.argmax(-1) == held_N]
    least = float(np.quantile(right, SURE)) if len(right) else 0.5
    return PromptRouter(names=names, weights=router.weights, bias=router.bias, least=least)
