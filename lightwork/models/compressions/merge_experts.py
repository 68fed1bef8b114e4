"""Expert merging: rarely used experts become one with the often used expert that is most like them.

Paper:  "Merge, Then Compress: Demystify Efficient SMoE with Hints from Its Routing Policy", 2024 (M-SMoE)
Idea:   the experts used most are centres; each other one joins the centre whose router row is most like its
        own, so that tokens which took it find a relative. Its neurons are put in the order of the centre's
        first, then weights and router rows are averaged, weighted by usage; of router rows the direction and
        the length apart, as a mean of unlike rows is short, and a short one is rarely chosen
Shapes: experts [E, ...] and router [E, d] of each layer -> `keep` of them
Cost:   one forward of calibration text; an assignment of F neurons per expert, O(F^3); keep / E of the bytes
Claims: moe_survey
Differs: router rows are averaged too (the paper keeps them, with several rows for one expert); as many
        experts stay in every layer

G experts kept  F MLP width  d hidden
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightwork.errors import MissingExtraError
from lightwork.models.compressions import Compressed, Usage
from lightwork.models.compressions._sizes import check_kept, expert_bytes
from lightwork.models.spec import ModelSpec
from lightwork.models.weights import Layer, Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeExperts:
    """keep: experts of each layer that are left."""

    keep: int = 6

    @torch.no_grad()
    def compress(self, weights: Weights, spec: ModelSpec, usage: Usage) -> Compressed:
        """Raises RangeError if fewer would be left than a token takes; MissingExtraError without scipy."""
        check_kept(self.keep, spec)
        layers = list(weights.layers)
        for i, loads_E in zip(sorted(spec.moe), usage.loads_LE, strict=True):
            order = np.argsort(-loads_E, kind="stable").tolist()
            groups = _groups(layers[i], order[: self.keep], order[self.keep :])
            layers[i] = _merged(layers[i], groups, torch.from_numpy(loads_E))
        merged, small = replace(weights, layers=layers), replace(spec, num_experts=self.keep)
        return Compressed(weights=merged, spec=small, expert_bytes=expert_bytes(merged, small))


def _groups(layer: Layer, centres: Sequence[int], others: Sequence[int]) -> list[list[int]]:
    """Each centre with those that join it."""
    assert layer.router is not None
    directions_Ed = F.normalize(layer.router, dim=-1)
    groups = [[centre] for centre in centres]
    for e in others:
        alike_G = directions_Ed[list(centres)] @ directions_Ed[e]
        groups[int(alike_G.argmax())].append(e)
    return groups


def _merged(layer: Layer, groups: Sequence[Sequence[int]], loads_E: Tensor) -> Layer:
    assert layer.router is not None
    routers, ups, downs = [], [], []
    for group in groups:
        share = loads_E[list(group)].to(layer.up.dtype) + 1e-3  # of experts that nobody takes, the mean
        share = share / share.sum()
        pairs = [_aligned(layer, group[0], e) for e in group]
        ups.append(sum(s * up for s, (up, _) in zip(share, pairs, strict=True)))
        downs.append(sum(s * down for s, (_, down) in zip(share, pairs, strict=True)))
        rows = layer.router[list(group)]
        routers.append(share @ rows.norm(dim=-1) * F.normalize(share @ rows, dim=0))
    return replace(layer, router=torch.stack(routers), up=torch.stack(ups), down=torch.stack(downs))


def _aligned(layer: Layer, centre: int, e: int) -> tuple[Tensor, Tensor]:
    """An expert's up and down with its neurons in the order in which they are most like the centre's."""
    up, down = layer.up[e], layer.down[e]
    if e == centre:
        return up, down
    width = down.shape[1]
    order = torch.from_numpy(_assigned(_neurons(layer, centre) @ _neurons(layer, e).T))
    return up.view(-1, width, up.shape[1])[:, order].reshape(up.shape), down[:, order]


def _neurons(layer: Layer, e: int) -> Tensor:
    """Everything of each neuron: its rows of gate and up, and its column of down, [F, 3d or 2d]."""
    up, down = layer.up[e], layer.down[e]
    rows = up.view(-1, down.shape[1], up.shape[1])
    return F.normalize(torch.cat([*rows, down.T], 1), dim=-1)


def _assigned(alike_FF: Tensor) -> np.ndarray:
    """Of each neuron of the one, which of the other is its counterpart, so that all are most alike."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ModuleNotFoundError:
        raise MissingExtraError("scipy", "plan") from None
    _, order = linear_sum_assignment(alike_FF.numpy(), maximize=True)
    return np.asarray(order, np.int64)
