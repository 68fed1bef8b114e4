"""Models that share blocks, computed together: rows of all of them go through a block at once.

A step's rows belong to sequences of several applications. At each place of the forward pass they are grouped
by the block that their application's chain has there, and each group is one product, whoever is in it.
Adapters add to the rows of their own. Blocks of unequal width use the first numbers of a row each.

R rows  d hidden
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightwork.errors import CheckpointError
from lightwork.kernels.rows import Rows
from lightwork.models.adapted import Placed, adapt_rows, place
from lightwork.models.adapters import Adapter, Delta
from lightwork.models.spec import ModelSpec
from lightwork.models.transformer import (
    Adapt,
    as_it_is,
    embed,
    logits,
    mlp_down,
    mlp_up,
    normalise,
    queries_keys_values,
    rotation,
)
from lightwork.models.weights import Layer, Weights
from lightwork.models.zoo import Zoo, shared_shape

if TYPE_CHECKING:
    from lightwork.models.model import KVPool, Model

Place = tuple[str, int]
"""A kind of block, and its layer."""


@dataclass(slots=True, kw_only=True)
class Chain:
    """One application. blocks: ids by place. spec: of each layer, and last of the head."""

    weights: Weights
    blocks: dict[Place, str]
    specs: list[ModelSpec]
    stitches: dict[int, dict[str, Tensor]]
    adapter: Placed | None = None

    def tensors(self) -> list[Tensor]:
        stitched = [t for stitch in self.stitches.values() for t in stitch.values()]
        adapted = [t for deltas in (self.adapter or {}).values() for _, *pair in deltas for t in pair]
        return [*self.weights.tensors(), *stitched, *adapted]


@dataclass(slots=True)
class Group:
    """Rows whose applications have the same block at a place. rows: all of the step's, if None."""

    chain: Chain
    rows: Tensor | None
    adapt: Adapt

    def of(self, x: Tensor, width: int | None = None) -> Tensor:
        """Its rows of x, of so many numbers."""
        mine = x if self.rows is None else x.index_select(0, self.rows)
        return mine if width is None else mine[..., :width]


class Chains:
    """Applications over one set of blocks, by the name that requests have for them."""

    def __init__(self, chains: Mapping[str, Chain], model: Model) -> None:
        self.chains = chains
        self._model = model
        self._width = max(spec.hidden_size for chain in chains.values() for spec in chain.specs)

    @property
    def nbytes(self) -> int:
        """Of their blocks, each once."""
        kept = (t for chain in self.chains.values() for t in chain.tensors())
        return sum({t.data_ptr(): t.nbytes for t in kept}.values())

    def hidden(self, rows: Rows, kv: KVPool) -> Tensor:
        """Normalised hidden states [R, d] of rows of any of them; keys and values are written."""
        from lightwork.models.model import paged

        spec, device = self._model.spec, self._model.device
        attend = paged(spec, rows, kv, device)
        groups = self._grouping(rows, torch.from_numpy(rows.seqs).to(device))
        tokens_R = torch.from_numpy(rows.tokens).to(device)
        at_R = torch.from_numpy(rows.positions).to(device)
        x_Rd = torch.zeros(len(tokens_R), self._width, dtype=self._model.dtype, device=device)
        for g in groups("embedding", -1):
            _put(x_Rd, g, embed(g.chain.weights, g.of(tokens_R), g.of(at_R)))
        cos_sin = rotation(spec, at_R, x_Rd.dtype)
        for i in range(spec.num_layers):
            for g in groups("stitch", i):
                if stitch := g.chain.stitches.get(i):
                    x = F.linear(g.of(x_Rd, stitch["stitch"].shape[1]), stitch["stitch"], stitch["bias"])
                    _put(x_Rd, g, x)
            attention = groups("attention", i)
            parts = [self._queries_keys_values(i, g, x_Rd, cos_sin) for g in attention]
            q, k, v = (_together(attention, some, len(x_Rd)) for some in zip(*parts, strict=True))
            heads_RK = attend(i, q, k, v).flatten(1)
            for g in attention:
                layer, own = g.chain.weights.layers[i], g.of(heads_RK)
                _add(x_Rd, g, g.adapt(i, "out", own, F.linear(own, layer.out, layer.out_bias)))
            for g in groups("mlp", i):
                layer, change = g.chain.weights.layers[i], partial(g.adapt, i)
                own = g.of(x_Rd, g.chain.specs[i].hidden_size)
                _add(x_Rd, g, mlp_down(mlp_up(own, layer, g.chain.specs[i], change), layer, change))
        for g in groups("head", -1):
            last = g.chain.specs[-1]
            _put(x_Rd, g, normalise(g.chain.weights, last, g.of(x_Rd, last.hidden_size)))
        return x_Rd

    def states(self, rows: Rows, kv: KVPool) -> Tensor:
        """As `hidden`, of rows of one application: [R, d] as wide as its last layer is."""
        name = rows.models[0] if rows.models else ""
        return self.hidden(rows, kv)[:, : self.chains[name].specs[-1].hidden_size]

    def score(self, rows: Rows, hidden_Nd: Tensor) -> Tensor:
        """Logits [N, V] of the scored rows, each by its own head."""
        if not len(hidden_Nd):
            return hidden_Nd.new_empty(0, self._model.spec.vocab_size)
        seqs_N = torch.from_numpy(rows.seqs[rows.scored]).to(hidden_Nd.device)
        groups = self._grouping(rows, seqs_N)("head", -1)
        parts = [logits(g.chain.weights, g.of(hidden_Nd, g.chain.specs[-1].hidden_size)) for g in groups]
        return _together(groups, parts, len(hidden_Nd))

    def _queries_keys_values(
        self, i: int, g: Group, x_Rd: Tensor, cos_sin: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        spec = g.chain.specs[i]
        turned = (g.of(cos_sin[0]), g.of(cos_sin[1])) if cos_sin is not None else None
        own = g.of(x_Rd, spec.hidden_size)
        return queries_keys_values(own, g.chain.weights.layers[i], spec, turned, partial(g.adapt, i))

    def _grouping(self, rows: Rows, seqs_R: Tensor) -> Callable[[str, int], list[Group]]:
        """From a place to the groups there. seqs_R: of the rows to be grouped."""
        names = rows.models or [""] * len(rows.known)
        of_seq = [self.chains[name] for name in names]
        present = {id(self.chains[names[s]]): self.chains[names[s]] for s in np.unique(seqs_R.cpu().numpy())}
        made: dict[tuple[int, ...], Group] = {}

        def group(members: list[Chain]) -> Group:
            key = tuple(map(id, members))
            if key not in made:
                mine = [s for s, chain in enumerate(of_seq) if id(chain) in key]
                is_mine_R = torch.isin(seqs_R, torch.tensor(mine, device=seqs_R.device))
                index = None if len(members) == len(present) else is_mine_R.nonzero()[:, 0]
                seqs = seqs_R if index is None else seqs_R[index]
                adapt = adapt_rows([chain.adapter for chain in of_seq], seqs) or as_it_is
                made[key] = Group(members[0], index, adapt)
            return made[key]

        def groups(kind: str, layer: int) -> list[Group]:
            sharing: dict[str | None, list[Chain]] = {}
            for chain in present.values():
                sharing.setdefault(chain.blocks.get((kind, layer)), []).append(chain)
            return [group(members) for members in sharing.values()]

        return groups


def _put(x_Rd: Tensor, g: Group, own: Tensor) -> None:
    if g.rows is None:
        x_Rd[:, : own.shape[1]] = own
    else:
        x_Rd[:, : own.shape[1]].index_copy_(0, g.rows, own)


def _add(x_Rd: Tensor, g: Group, own: Tensor) -> None:
    if g.rows is None:
        x_Rd[:, : own.shape[1]] += own
    else:
        x_Rd[:, : own.shape[1]].index_add_(0, g.rows, own)


def _together(groups: Sequence[Group], parts: Sequence[Tensor], num_rows: int) -> Tensor:
    """What groups have of all rows, in the order of the rows."""
    if groups[0].rows is None:
        return parts[0]
    out = parts[0].new_empty(num_rows, *parts[0].shape[1:])
    for g, part in zip(groups, parts, strict=True):
        assert g.rows is not None
        out.index_copy_(0, g.rows, part)
    return out


def share(model: Model, zoo: Zoo, chains: Mapping[str, Sequence[str]]) -> Chains:
    """Let a model compute these chains, by name, in place of its own weights; "" is for requests that name
    none.

    Blocks that several have are read once and are the same tensors. Raises CheckpointError for a chain of
    another shape.
    """
    for name, ids in chains.items():
        if shared_shape(zoo.spec(ids)) != shared_shape(model.spec):
            raise CheckpointError(
                f"the fine-tune {name!r} has another shape",
                expected="that of the model it is served beside, but for widths",
                fix="leave it out",
            )
    kept: dict[str, dict[str, Tensor]] = {}

    def read(block: str) -> dict[str, Tensor]:
        if block not in kept:
            tensors = zoo.tensors(block)
            kept[block] = {n: t.to(device=model.device, dtype=model.dtype) for n, t in tensors.items()}
        return kept[block]

    made = Chains({name: _open(zoo, ids, model, read) for name, ids in chains.items()}, model)
    model.chains = made
    model.weights = made.chains[""].weights
    model.hidden, model.score = made.hidden, made.score
    model.variants = {name: name for name in chains if name}
    return made


def _open(zoo: Zoo, ids: Sequence[str], model: Model, read: Callable[[str], dict[str, Tensor]]) -> Chain:
    num_layers = model.spec.num_layers
    layers: list[dict[str, Tensor]] = [{} for _ in range(num_layers)]
    specs = [model.spec] * (num_layers + 1)
    others: dict[str, Tensor] = {}
    blocks: dict[Place, str] = {}
    stitches: dict[int, dict[str, Tensor]] = {}
    adapter: Placed | None = None
    for i in ids:
        block = zoo.blocks[i]
        if block.kind == "adapter":
            adapter = place(_adapter(zoo.tensors(i)), model.spec, model.dtype, model.device)
            continue
        blocks[block.place] = i
        if block.kind == "stitch":
            stitches[block.layer] = read(i)
            continue
        (others if block.layer < 0 else layers[block.layer]).update(read(i))
        specs[block.layer] = zoo.spec([i])
    if "head" not in others:  # tied: rows that share a head share the embedding, too
        others["head"] = others["embed"]
        blocks["head", -1] += blocks["embedding", -1]
    weights: dict[str, Any] = {"layers": [Layer(**parts) for parts in layers], **others}
    return Chain(weights=Weights(**weights), blocks=blocks, specs=specs, stitches=stitches, adapter=adapter)


def _adapter(tensors: Mapping[str, Tensor]) -> Adapter:
    paths = [name[:-2] for name in tensors if name.endswith(".a")]
    pairs = {path: (tensors[f"{path}.a"].numpy(), tensors[f"{path}.b"].numpy()) for path in paths}
    return Adapter(name="adapter", deltas={p: Delta(a=a, b=b, scale=1.0) for p, (a, b) in pairs.items()})
