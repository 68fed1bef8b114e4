"""A router of Duo-LLM: in each layer a linear gate on the hidden state says who gets a big MLP.

Paper:  "Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models", 2024
Idea:   a gate reads the row behind the layer's attention and the number of big layers that the row may still
        take, and foretells what a big MLP here saves; it is taken where that is more than nothing
Shapes: hidden states [R, d] of one layer after the other -> SMALL or BIG of each row
Cost:   d multiply-adds per row and layer
Claims: duo_llm
Differs: every token takes exactly its number of big layers, so that routers, oracles and fixed patterns are
         compared at one cost; train/duo_router.py says how gates are fitted

R rows  L layers  d hidden
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightwork.errors import RangeError
from lightwork.models.duo import BIG, SMALL, Choose


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """weights [L, L + 1, d] and bias [L, L + 1], float32: of each layer, by how many big ones are left."""

    weights: Tensor
    bias: Tensor

    def choose(self, num_big: int | Tensor) -> Choose:
        """For one forward, its layers in order. num_big: of each row, or of all.

        Raises RangeError unless so many layers exist.
        """
        num_layers, budget = len(self.weights), torch.as_tensor(num_big)
        if budget.min() < 0 or budget.max() > num_layers:
            raise RangeError(
                f"{budget.min()} to {budget.max()} big layers of {num_layers}", expected=f"0 to {num_layers}"
            )
        left_R = torch.empty(0, dtype=torch.int64)

        def choose(layer: int, x_Rd: Tensor) -> Tensor:
            nonlocal left_R
            if layer == 0:
                left_R = budget.expand(len(x_Rd))
            gains_R = (features(x_Rd) * self.weights[layer, left_R]).sum(-1) + self.bias[layer, left_R]
            wanted_R = (gains_R > 0) & (left_R > 0) | (left_R == num_layers - layer)
            left_R = left_R - wanted_R.long()
            choices_R = torch.where(wanted_R, float(BIG), float(SMALL))
            return torch.where(gains_R.isfinite(), choices_R, gains_R)  # `checked` names who it is

        return choose


def features(x_Rd: Tensor) -> Tensor:
    """What gates read of hidden states: their direction."""
    return F.rms_norm(x_Rd, x_Rd.shape[-1:])
