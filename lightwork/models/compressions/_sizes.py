"""Checks and counts that compressions of experts share."""

from __future__ import annotations

from lightwork.errors import RangeError
from lightwork.models.spec import ModelSpec
from lightwork.models.weights import Weights


def check_kept(keep: int, spec: ModelSpec) -> None:
    """Raises RangeError unless a row can still take its experts."""
    if not spec.experts_per_token <= keep <= spec.num_experts:
        raise RangeError(
            f"{keep} of {spec.num_experts} experts of a layer are kept",
            expected=f"{spec.experts_per_token}, which a token takes, to {spec.num_experts}",
        )


def expert_bytes(weights: Weights, spec: ModelSpec) -> int:
    """Of all experts, in the type of the weights."""
    return sum(weights.layers[i].up.nbytes + weights.layers[i].down.nbytes for i in spec.moe)
