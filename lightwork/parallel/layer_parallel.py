"""A group of layers on several devices: each attends for its share of them, then all know what all found.

Of a group of several layers the one at place i is attended for by rank i modulo n, which alone writes its
keys and values; one all-gather follows. What comes behind the attentions is the same everywhere, as are
groups of one. After that a pass of groups of one, in which every rank computes all, writes all keys and
values anew: EasySpec's calibration (decode/proposers/easy_spec.py) is what makes this right.

R rows  d hidden
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lightwork.kernels.rows import Rows
from lightwork.models.layer_plan import LayerPlan
from lightwork.models.model import KVPool, Model, paged
from lightwork.models.transformer import attention, embed, follow, logits, normalise, rotation
from lightwork.runtime.effects import Collective, Compute


class Layers(Protocol):
    """What computes layers, or says what they cost."""

    async def attend(self, x: Any, mine: Sequence[int], num: int) -> Any:
        """What the attentions of `mine` add to x, [num, R, d]: zeros behind them, if they are fewer."""
        ...

    async def follow(self, x: Any, group: Sequence[int], added: Sequence[Any]) -> Any:
        """x [R, d] behind a group. added: what each rank gave."""
        ...


async def layer_parallel(me: int, n: int, x: Any, plan: LayerPlan, layers: Layers) -> Any:
    """x [R, d] behind all layers, equal on all ranks. Collectives: as many as groups of several layers."""
    ranks = tuple(range(n))
    for group in plan.groups:
        num, mine = len(group), group
        if len(group) > 1:
            num, mine = -(-len(group) // n), group[me::n]
        added = await layers.attend(x, mine, num)
        gathered = await Collective("all_gather", ranks, added) if len(group) > 1 else [added]
        x = await layers.follow(x, group, gathered)
    return x


class Attending:
    """Layers of a model for one step's rows, whose keys and values are written to a pool of this rank."""

    def __init__(self, model: Model, rows: Rows, kv: KVPool) -> None:
        self._model = model
        self._rows = rows
        self._positions_R = torch.from_numpy(rows.positions)
        self._cos_sin = rotation(model.spec, self._positions_R, model.dtype)
        self._attend = paged(model.spec, rows, kv, model.device)

    def embed(self) -> Tensor:
        """Hidden states [R, d] before the first layer."""
        return embed(self._model.weights, torch.from_numpy(self._rows.tokens), self._positions_R)

    def logits(self, x_Rd: Tensor) -> Tensor:
        """Of the scored rows, [N, V]."""
        weights = self._model.weights
        x_Nd = x_Rd[torch.from_numpy(self._rows.scored)]
        return logits(weights, normalise(weights, self._model.spec, x_Nd))

    async def attend(self, x: Tensor, mine: Sequence[int], num: int) -> Any:
        return await Compute((), self._added, (x, mine, num), "attention")

    async def follow(self, x: Tensor, group: Sequence[int], added: Sequence[Tensor]) -> Any:
        return await Compute((), self._behind, (x, group, added), "mlp")

    def _added(self, x_Rd: Tensor, mine: Sequence[int], num: int) -> Tensor:
        weights, spec = self._model.weights, self._model.spec
        found = x_Rd.new_zeros((num, *x_Rd.shape))
        for at, i in enumerate(mine):
            found[at] = attention(i, x_Rd, weights.layers[i], spec, self._cos_sin, self._attend)
        return found

    def _behind(self, x_Rd: Tensor, group: Sequence[int], added: Sequence[Tensor]) -> Tensor:
        for at, i in enumerate(group):
            one_Rd = added[at % len(added)][at // len(added)]
            x_Rd = follow(x_Rd, one_Rd, self._model.weights.layers[i], self._model.spec)
        return x_Rd
