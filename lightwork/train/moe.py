"""Next-token training of models of experts, all of which are to be taken.

Beside the loss of the next token there is that of Switch Transformers (Fedus, Zoph and Shazeer, 2021, section
2.2): in each layer E times the sum over its experts of the share of choices that fell on one times its mean
probability. It is 1 if both are even, E if one expert takes everything. Nothing is dropped: an expert
computes whatever rows take it.

R rows  E experts of a layer  K experts that a row takes
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from lightwork.models.spec import ModelSpec
from lightwork.models.weights import Weights
from lightwork.train.pretrain import Batch, Progress, Settings, optimise, predict

BALANCE = 0.01
"""Of the paper."""


def imbalance(probable_RE: Tensor, chosen_RK: Tensor) -> Tensor:
    """How unevenly rows take experts, from 1 to E; it has a gradient by the probabilities only."""
    num_experts = probable_RE.shape[1]
    share_E = torch.bincount(chosen_RK.flatten(), minlength=num_experts) / chosen_RK.numel()
    return num_experts * (share_E * probable_RE.mean(0)).sum()


def pretrain_experts(
    weights: Weights,
    spec: ModelSpec,
    batches: Iterable[Batch],
    settings: Settings,
    *,
    balance: float = BALANCE,
) -> Iterator[Progress]:
    """As `pretrain`. balance: what the imbalance of each layer counts for beside the next token.

    Losses reported have it in them. What fills a batch up behind a text (position 0) is not balanced.
    """

    def loss(batch: Batch) -> Tensor:
        real_R = batch.positions_BT[:, :-1].reshape(-1) > 0
        of_layers: list[Tensor] = []

        def routed(layer: int, probable_RE: Tensor, chosen_RK: Tensor) -> None:
            of_layers.append(imbalance(probable_RE[real_R], chosen_RK[real_R]))

        predicted, tokens_N = predict(weights, spec, batch, routed=routed)
        return F.cross_entropy(predicted, tokens_N) + balance * torch.stack(of_layers).sum()

    return optimise(weights.tensors(), loss, batches, settings)
