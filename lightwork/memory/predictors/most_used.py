"""Most used: the experts of the next layer that an earlier run took most, whatever the token.

Paper:  "A Survey on Inference Optimization Techniques for Mixture of Experts Models", 2024 (prefetching)
Idea:   the load of experts is uneven; its order alone is better than chance
Shapes: loads [L, E] -> experts, the most used first
Cost:   nothing per token
Claims: moe_survey
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightwork.memory.predictors import Seen
from lightwork.models.routing import RoutingTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class MostUsed:
    """By the loads of an earlier run. Its state: of each layer, the experts in order, [L, E]."""

    def init(self, history: RoutingTrace) -> NDArray[np.int64]:
        return np.argsort(-history.loads(), axis=1, kind="stable")

    def predict(self, state: NDArray[np.int64], seen: Seen, num: int) -> list[int]:
        return [int(e) for e in state[seen.layer + 1][:num]]
