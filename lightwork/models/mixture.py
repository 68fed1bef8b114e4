"""The forward of `transformer` with its experts opened up: where their weights come from, which a row leaves
out, what they gave, and what the next router would say already.

With all experts at hand and nothing left out it computes the same bits.

R rows  T rows of one expert  L layers that have experts  E experts of a layer  K experts that a row takes
d hidden  F MLP width
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lightwork.kernels.rows import Rows
from lightwork.models.adapted import adapt_rows
from lightwork.models.compressions import Usage
from lightwork.models.model import KVPool, Model, paged
from lightwork.models.skips import Skip
from lightwork.models.spec import ModelSpec
from lightwork.models.transformer import (
    Adapt,
    Attend,
    Routed,
    as_it_is,
    attention,
    embed,
    expert,
    mlp_down,
    mlp_up,
    norm,
    normalise,
    rotation,
    route,
    unseen,
)
from lightwork.models.weights import Layer, Weights

Mix = Callable[[int, Tensor], Tensor]
"""(layer that has experts, its input [R, d]) -> what the experts add to it, [R, d]."""
Bring = Callable[[int, Sequence[int]], Iterable[tuple[int, Tensor, Tensor]]]
"""(layer, experts that rows take, ascending) -> each, with up [2F or F, d] and down [d, F], in any order."""
Watch = Callable[[int, int, Tensor, Tensor], object]
"""Told: (layer, expert, the gates of its rows [T], what it gave for them [T, d])."""


def forward(
    weights: Weights,
    spec: ModelSpec,
    tokens_R: Tensor,
    positions_R: Tensor,
    attend: Attend,
    mix: Mix,
    adapt: Adapt | None = None,
) -> Tensor:
    """As `transformer.forward`, with `mix` for the layers that have experts."""
    x_Rd = embed(weights, tokens_R, positions_R)
    cos_sin = rotation(spec, positions_R, x_Rd.dtype)
    for i, layer in enumerate(weights.layers):
        change = partial(adapt or as_it_is, i)
        x_Rd = x_Rd + attention(i, x_Rd, layer, spec, cos_sin, attend, change)
        if layer.router is not None:
            x_Rd = x_Rd + mix(i, x_Rd)
        else:
            x_Rd = x_Rd + mlp_down(mlp_up(x_Rd, layer, spec, change), layer, change)
    return normalise(weights, spec, x_Rd)


def through(model: Model, mix: Mix) -> Callable[[Rows, KVPool], Tensor]:
    """What to set as `model.hidden`, so that its steps go through a mix."""

    def hidden(rows: Rows, kv: KVPool) -> Tensor:
        tokens_R, positions_R, seqs_R = (
            torch.from_numpy(a).to(model.device) for a in (rows.tokens, rows.positions, rows.seqs)
        )
        adapt = adapt_rows(model.adapters.of(rows.models), seqs_R)
        attend = paged(model.spec, rows, kv, model.device)
        return forward(model.weights, model.spec, tokens_R, positions_R, attend, mix, adapt)

    return hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """A `Mix`. skip: leaves experts of a row out. bring: where their weights are, if not in the layers."""

    weights: Weights
    spec: ModelSpec
    skip: Skip | None = None
    bring: Bring | None = None
    routed: Routed = unseen
    watch: Watch | None = None

    def __call__(self, i: int, x_Rd: Tensor) -> Tensor:
        layer = self.weights.layers[i]
        h_Rd = norm(x_Rd, layer.norm2, layer.norm2_bias, self.spec)
        probable_RE, gates_RK, chosen_RK = route(h_Rd, layer, self.spec)
        self.routed(i, probable_RE, chosen_RK)
        if self.skip is not None:
            gates_RK = kept(gates_RK, self.skip, normalise=self.spec.normalise_gates)
        taken_RK = gates_RK > 0
        needed = torch.unique(chosen_RK[taken_RK]).tolist()
        terms = {}
        for e, up, down in (self.bring or self._at_hand)(i, needed):
            rows, rank = torch.nonzero((chosen_RK == e) & taken_RK, as_tuple=True)
            y_Td, gates_T = expert(h_Rd[rows], up, down, self.spec), gates_RK[rows, rank]
            if self.watch is not None:
                self.watch(i, e, gates_T, y_Td)
            terms[e] = rows, y_Td * gates_T[:, None].to(y_Td.dtype)
        out_Rd = torch.zeros_like(h_Rd)
        for e in sorted(terms):  # whatever came first: sums of floats depend on their order
            out_Rd.index_add_(0, *terms[e])
        return out_Rd

    def _at_hand(self, i: int, needed: Sequence[int]) -> Iterable[tuple[int, Tensor, Tensor]]:
        layer = self.weights.layers[i]
        return ((e, layer.up[e], layer.down[e]) for e in needed)


def kept(gates_RK: Tensor, skip: Skip, *, normalise: bool) -> Tensor:
    """The gates of what is not left out, 0 for the rest; normalised: they sum to 1 again."""
    gates_RK = torch.where(skip.keep(gates_RK), gates_RK, 0.0)
    return gates_RK / gates_RK.sum(-1, keepdim=True) if normalise else gates_RK


class LookAhead:
    """A `Mix` around another one: what each next router says of this layer's input, of all rows, in order."""

    def __init__(self, inner: Mixture) -> None:
        self._inner = inner
        layers = sorted(inner.spec.moe)
        self._after = dict(pairwise(layers))
        self._said: dict[int, list[NDArray[np.float32]]] = {i: [] for i in self._after}

    def __call__(self, i: int, x_Rd: Tensor) -> Tensor:
        if i in self._after:
            probable_RE = ahead(x_Rd, self._inner.weights.layers[self._after[i]], self._inner.spec)
            self._said[i].append(probable_RE.numpy(force=True))
        return self._inner(i, x_Rd)

    def next_NLE(self) -> NDArray[np.float32]:
        """[N, L - 1, E], of a model with two such layers at least."""
        return np.stack([np.concatenate(rows) for rows in self._said.values()], 1)


def ahead(x_Rd: Tensor, layer: Layer, spec: ModelSpec) -> Tensor:
    """The probabilities [R, E] that a later layer's router gives for an earlier one's input."""
    assert layer.router is not None
    h_Rd = norm(x_Rd, layer.norm2, layer.norm2_bias, spec)
    return F.softmax(F.linear(h_Rd, layer.router).float(), -1)


class Counted:
    """A `Watch` that counts how experts are used."""

    def __init__(self, spec: ModelSpec) -> None:
        self._at = {layer: i for i, layer in enumerate(sorted(spec.moe))}
        shape = len(spec.moe), spec.num_experts
        self.usage = Usage(loads_LE=np.zeros(shape, np.int64), outputs_LE=np.zeros(shape))

    def __call__(self, layer: int, e: int, gates_T: Tensor, y_Td: Tensor) -> None:
        self.usage.loads_LE[self._at[layer], e] += len(gates_T)
        self.usage.outputs_LE[self._at[layer], e] += float((gates_T * y_Td.norm(dim=-1)).sum())
