"""Weights as the forward pass wants them, and their names in Hugging Face checkpoints.

Projections that read the same input are fused: queries, keys and values; gate and up. `parts.each_part` names
the tensors that a weight is made of, `from_checkpoint` puts them together; `to_checkpoint` takes them apart.

d: hidden size. H query heads, G key-value heads, D head size. F: MLP width. E experts. V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lightwork.models.parts import Part, each_part
from lightwork.models.spec import ModelSpec

Get = Callable[[str, tuple[int, ...]], Tensor]
"""(name, expected shape) -> the tensor; raises CheckpointError."""
Cut = Callable[[str, Tensor], Tensor]
"""(name of a weight, one of its tensors, output-major) -> what is wanted of it."""


@dataclass(slots=True, kw_only=True)
class Layer:
    """One layer.

    Qkv [(H + 2G) D, d], out [d, H D], up [2F or F, d], down [d, F]; router [E, d], experts [E, ...].
    """

    norm1: Tensor
    norm1_bias: Tensor | None = None
    qkv: Tensor
    qkv_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    out: Tensor
    out_bias: Tensor | None = None
    norm2: Tensor
    norm2_bias: Tensor | None = None
    router: Tensor | None = None
    up: Tensor
    up_bias: Tensor | None = None
    down: Tensor
    down_bias: Tensor | None = None


@dataclass(slots=True, kw_only=True)
class Weights:
    """embed [V, d], positions [max_len, d] or None, head [V, d] (the same tensor as embed when tied).

    probes: [P, d], of negative tokens, which belong to no checkpoint; None if there are none.

    Of a slice of a model (`slices`): what it has of them, and empty tensors for what it lacks.
    """

    embed: Tensor
    positions: Tensor | None = None
    layers: list[Layer]
    norm: Tensor
    norm_bias: Tensor | None = None
    head: Tensor
    probes: Tensor | None = None

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor once."""
        seen: set[int] = set()
        values = [getattr(self, f.name) for f in fields(self)]
        values += [getattr(layer, f.name) for layer in self.layers for f in fields(layer)]
        for value in values:
            if isinstance(value, Tensor) and id(value) not in seen:
                seen.add(id(value))
                yield value

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors())


def from_checkpoint(spec: ModelSpec, get: Get, parts: Iterable[Part] | None = None) -> Weights:
    """Put a model's weights together from its checkpoint's tensors. parts: all of them, if not given."""
    layers: list[dict[str, Tensor]] = [{} for _ in range(spec.num_layers)]
    others: dict[str, Tensor] = {}
    for part in parts or each_part(spec):
        tied = part.name == "head" and spec.tied
        whole = others["embed"] if tied else joined(spec, part, get)
        (others if part.layer < 0 else layers[part.layer])[part.name] = whole
    return Weights(layers=[Layer(**parts) for parts in layers], **others)


def joined(spec: ModelSpec, part: Part, get: Get, cut: Cut = lambda name, tensor: tensor) -> Tensor:
    """A weight of its tensors, or of what is cut from each."""
    tensors = _pieces(part, get, cut)
    whole = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
    return whole.view(spec.num_experts, -1, whole.shape[1]) if _of_experts(spec, part) else whole


def joined_shape(spec: ModelSpec, part: Part, cut: Cut) -> tuple[int, ...]:
    """Of what `joined` gives, without any tensor."""
    pieces = _pieces(part, lambda name, shape: torch.empty(shape, device="meta"), cut)
    outputs = sum(len(piece) for piece in pieces)  # torch.cat without data would import 70 MB of torch
    if _of_experts(spec, part):
        return spec.num_experts, outputs // spec.num_experts, pieces[0].shape[1]
    return outputs, *pieces[0].shape[1:]


def _pieces(part: Part, get: Get, cut: Cut) -> list[Tensor]:
    tensors = [get(name, shape) for name, shape in part.tensors]
    if part.transposed:
        tensors = [tensor.T.contiguous() for tensor in tensors]
    return [cut(part.name, tensor) for tensor in tensors]


def _of_experts(spec: ModelSpec, part: Part) -> bool:
    return part.layer in spec.moe and part.name in ("up", "down")


def to_checkpoint(weights: Weights, spec: ModelSpec) -> dict[str, Tensor]:
    """The tensors of a model under their Hugging Face names, as views of its weights."""
    state: dict[str, Tensor] = {}
    for part in each_part(spec):
        if part.name == "head" and spec.tied:
            continue
        whole = getattr(weights if part.layer < 0 else weights.layers[part.layer], part.name)
        names, shapes = zip(*part.tensors, strict=True)
        sizes = [shape[-1 if part.transposed else 0] for shape in shapes]
        pieces = torch.split(whole.flatten(0, 1) if whole.ndim == 3 else whole, sizes)
        state |= zip(names, (piece.T if part.transposed else piece for piece in pieces), strict=True)
    return state
