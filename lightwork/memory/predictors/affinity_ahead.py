"""Affinity: the experts that follow those of this layer most often.

Paper:  "Exploiting Inter-Layer Expert Affinity for Accelerating Mixture-of-Experts Model Inference", 2024
Idea:   routers of neighbouring layers take experts together, and a trace says which; what a token takes now
        says what it takes next, without looking at the token
Shapes: Affinity [L - 1, E, E], the experts taken [K] -> experts, the most probable first
Cost:   O(K E) per token and layer; L E E numbers
Claims: moe_survey
"""

from __future__ import annotations

from dataclasses import dataclass

from lightwork.memory.predictors import Seen
from lightwork.models.routing import Affinity, RoutingTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class AffinityAhead:
    """By the conditional probabilities of an earlier run."""

    def init(self, history: RoutingTrace) -> Affinity:
        return Affinity.of(history)

    def predict(self, state: Affinity, seen: Seen, num: int) -> list[int]:
        return state.likely(seen.layer, seen.path_LK[-1].tolist(), num)
