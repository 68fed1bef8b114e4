"""Expert pruning: in each layer the experts that add least are dropped.

Paper:  "Not All Experts are Equal: Efficient Expert Pruning and Skipping for Mixture-of-Experts Large
        Language Models", 2024
Idea:   what an expert added to the residual stream of some text, its usage times the length of its outputs,
        says what is lost without it; the router's rows of those dropped go too, so tokens take the next best
Shapes: experts [E, ...] and router [E, d] of each layer -> `keep` of them
Cost:   one forward of calibration text; keep / E of the bytes
Claims: moe_survey
Differs: the paper tries all subsets of a layer against its outputs; this ranks experts one by one
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from lightwork.models.compressions import Compressed, Usage
from lightwork.models.compressions._sizes import check_kept, expert_bytes
from lightwork.models.spec import ModelSpec
from lightwork.models.weights import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneExperts:
    """keep: experts of each layer that stay."""

    keep: int = 6

    def compress(self, weights: Weights, spec: ModelSpec, usage: Usage) -> Compressed:
        """Raises RangeError if fewer would stay than a token takes."""
        check_kept(self.keep, spec)
        layers = list(weights.layers)
        for i, added_E in zip(sorted(spec.moe), usage.outputs_LE, strict=True):
            stay = torch.from_numpy(np.sort(np.argsort(-added_E, kind="stable")[: self.keep]))
            layer = layers[i]
            assert layer.router is not None
            layers[i] = replace(layer, router=layer.router[stay], up=layer.up[stay], down=layer.down[stay])
        pruned, small = replace(weights, layers=layers), replace(spec, num_experts=self.keep)
        return Compressed(weights=pruned, spec=small, expert_bytes=expert_bytes(pruned, small))
