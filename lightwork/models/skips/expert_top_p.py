"""Top-p of experts: as many as together have a share of a row's gates.

Paper:  "Harder Tasks Need More Experts: Dynamic Routing in MoE Models", 2024
Idea:   where the router is sure, one expert has the share alone; where it is not, several are needed
Shapes: gates [R, K] -> which to keep [R, K]
Cost:   K additions per row
Claims: moe_survey
Differs: the paper trains with it, over all experts; here over the K that a trained model takes
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightwork.errors import RangeError


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertTopP:
    """share: of the sum of a row's gates, above 0 to 1; the fewest experts that reach it stay."""

    share: float = 0.8

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise RangeError(f"share is {self.share}", expected="above 0, to 1", fix="ExpertTopP(share=0.8)")

    def keep(self, gates_RK: Tensor) -> Tensor:
        before_RK = gates_RK.cumsum(-1) - gates_RK
        kept_RK = before_RK < self.share * gates_RK.sum(-1, keepdim=True)
        kept_RK[:, 0] = True
        return kept_RK
