"""Pre-gate: the next layer's router, asked one layer early.

Paper:  "Fast Inference of Mixture-of-Experts Language Models with Offloading", 2023 (speculative loading)
Idea:   each layer adds little to the residual stream, so the next router mostly decides on this layer's input
        what it will decide on its own; it has been trained already, and costs one small product
Shapes: the next router's probabilities [E] at this layer's input -> experts, the most probable first
Cost:   d x E multiply-adds per token and layer
Claims: moe_survey
Differs: "Pre-gated MoE" (2024) trains routers to decide a layer early; these are used as they are
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightwork.errors import RangeError
from lightwork.memory.predictors import Seen
from lightwork.models.routing import RoutingTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class PreGate:
    """Knows nothing of earlier runs."""

    def init(self, history: RoutingTrace) -> None:
        return None

    def predict(self, state: None, seen: Seen, num: int) -> list[int]:
        """Raises RangeError if nobody computed what the next router says."""
        if seen.next_E is None:
            raise RangeError(
                "PreGate is not told what the next router says",
                expected="its probabilities at this layer's input",
                fix="AffinityAhead(), which goes by the experts taken",
            )
        return [int(e) for e in np.argsort(-seen.next_E, kind="stable")[:num]]
