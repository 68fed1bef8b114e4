"""Low-rank experts: all experts of a layer share one matrix, and each keeps a thin difference from it.

Paper:  "MoE-I2: Compressing Mixture of Experts Models through Inter-Expert Pruning and Intra-Expert Low-Rank
        Decomposition", 2024
Idea:   the shared matrix is the mean of the experts, weighted by usage; of the difference of each to it the
        largest singular values are kept. Where experts grew out of one another little is lost
Shapes: experts [E, N, K] -> shared [N, K], and [E, N, r], [E, r, K]
Cost:   an SVD per expert; (N K + E r (N + K)) / (E N K) of the bytes
Claims: moe_survey
Differs: the paper prunes first, trains afterwards, and factors experts themselves, not their differences
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightwork.errors import RangeError
from lightwork.models.compressions import Compressed, Usage
from lightwork.models.spec import ModelSpec
from lightwork.models.weights import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRankExperts:
    """rank: of the differences."""

    rank: int = 16

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise RangeError(f"rank is {self.rank}", expected="at least 1", fix="LowRankExperts(rank=8)")

    @torch.no_grad()
    def compress(self, weights: Weights, spec: ModelSpec, usage: Usage) -> Compressed:
        layers, stored = list(weights.layers), 0
        for i, loads_E in zip(sorted(spec.moe), usage.loads_LE, strict=True):
            share_E = torch.from_numpy((loads_E + 1) / (loads_E + 1).sum()).to(layers[i].up.dtype)
            up, down = (_shared(m, share_E, self.rank) for m in (layers[i].up, layers[i].down))
            stored += sum(self._numbers(m) * m.element_size() for m in (up, down))
            layers[i] = replace(layers[i], up=up, down=down)
        return Compressed(weights=replace(weights, layers=layers), spec=spec, expert_bytes=stored)

    def _numbers(self, experts_ENK: Tensor) -> int:
        num, n, k = experts_ENK.shape
        return n * k + num * min(self.rank, n, k) * (n + k)


def _shared(experts_ENK: Tensor, share_E: Tensor, rank: int) -> Tensor:
    """What is left of experts."""
    mean_NK = torch.tensordot(share_E, experts_ENK, 1)
    u, s, v = torch.linalg.svd(experts_ENK - mean_NK, full_matrices=False)
    left: Tensor = mean_NK + (u[..., :rank] * s[:, None, :rank]) @ v[:, :rank]
    return left
