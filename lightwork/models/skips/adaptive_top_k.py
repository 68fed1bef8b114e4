"""Adaptive top-k: an expert whose share of a row's gates is small is left out.

Paper:  "Adaptive Gating in Mixture-of-Experts based Language Models", 2023
Idea:   the router is sure of many rows: its first expert has nearly the whole gate, and the others add
        little, at the same cost; those below a threshold are not read and not computed
Shapes: gates [R, K] -> which to keep [R, K]
Cost:   K comparisons per row
Claims: moe_survey
Differs: the paper trains with it, with two experts per row; here a trained model is served so, with any K
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightwork.errors import RangeError


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveTopK:
    """threshold: least share of the sum of a row's gates, 0 to 1. The first expert always stays."""

    threshold: float = 0.2

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise RangeError(
                f"threshold is {self.threshold}", expected="0 to 1", fix="AdaptiveTopK(threshold=0.2)"
            )

    def keep(self, gates_RK: Tensor) -> Tensor:
        kept_RK = gates_RK >= self.threshold * gates_RK.sum(-1, keepdim=True)
        kept_RK[:, 0] = True
        return kept_RK
