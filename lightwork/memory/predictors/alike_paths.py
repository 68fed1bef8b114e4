"""Alike paths: what the tokens of an earlier run took next whose way so far is most like this one's.

Paper:  "MoE-Infinity: Efficient MoE Inference on Personal Machines with Sparsity-Aware Expert Cache", 2024
Idea:   the experts of all layers so far are a pattern; the most similar patterns of the past vote on the next
        layer, so what a token took three layers ago counts as well
Shapes: a path [l + 1, K], a history [N, L, K] -> experts, those of most votes first
Cost:   O(N l K K) per token and layer
Claims: moe_survey
Differs: the paper keeps clustered counts of whole sequences; here the tokens of a trace are compared
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightwork.errors import RangeError
from lightwork.memory.predictors import Seen
from lightwork.models.routing import RoutingTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class AlikePaths:
    """nearest: tokens that vote at least; those that are as alike as the last of them vote too."""

    nearest: int = 16

    def __post_init__(self) -> None:
        if self.nearest < 1:
            raise RangeError(
                f"nearest is {self.nearest}", expected="at least 1", fix="AlikePaths(nearest=16)"
            )

    def init(self, history: RoutingTrace) -> RoutingTrace:
        return history

    def predict(self, state: RoutingTrace, seen: Seen, num: int) -> list[int]:
        before = state.chosen_NLK[:, : seen.layer + 1]
        alike_N = (before[..., None] == seen.path_LK[:, None]).sum((1, 2, 3))
        nearest = min(self.nearest, len(alike_N))
        least = np.partition(alike_N, -nearest)[-nearest] if nearest else 0
        taken = state.chosen_NLK[alike_N >= least, seen.layer + 1]
        votes_E = np.bincount(taken.ravel(), minlength=state.num_experts)
        return [int(e) for e in np.argsort(-votes_E, kind="stable")[:num]]
