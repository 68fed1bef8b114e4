"""A part of a model: some of its layers, and of each what one of several tensor-parallel ranks has.

A rank has whole heads and columns of the MLP, of every expert as well, so that its products are summands of
the whole ones (Shoeybi et al., "Megatron-LM", 2019). Embedding and head are cut by vocabulary, or whole with
rank 0. Biases behind a sum, and positions, are with rank 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from lightwork.errors import SpecError
from lightwork.models.parts import Part, each_part
from lightwork.models.spec import ModelSpec
from lightwork.models.weights import Get, Layer, Weights, joined

BY_OUTPUT = ("qkv", "qkv_bias", "up", "up_bias")
BY_INPUT = ("out", "down")
BY_VOCABULARY = ("embed", "head")
ONCE = ("out_bias", "down_bias", "positions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Layers [first, last), and of those the share of `rank` among `ranks`.

    With layer 0 comes the embedding, with the last layer the head. master: rank 0 has the whole of both, so
    that no other knows tokens or scores; else each has its share.
    """

    first: int
    last: int
    rank: int = 0
    ranks: int = 1
    master: bool = False

    def shape(self, spec: ModelSpec) -> ModelSpec:
        """Of the slice as a model of its own: its layers, heads and widths. Raises SpecError."""
        if not 0 <= self.first < self.last <= spec.num_layers:
            raise SpecError(
                f"layers {self.first} to {self.last} of {spec.name or spec.family}",
                expected=f"one or more of its {spec.num_layers}",
                fix="fewer stages",
            )
        widths = ("num_heads", "num_kv_heads", "ffn_size", "dense_ffn_size")
        for name in widths:
            if getattr(spec, name) % self.ranks:
                raise SpecError(
                    f"{name} of {spec.name or spec.family} is {getattr(spec, name)}",
                    expected=f"a multiple of the {self.ranks} tensor-parallel ranks",
                    fix="another tp",
                )
        return replace(
            spec,
            num_layers=self.last - self.first,
            windowed=self._renumbered(spec.windowed),
            moe=self._renumbered(spec.moe),
            **{name: getattr(spec, name) // self.ranks for name in widths},
        )

    def vocabulary(self, spec: ModelSpec) -> range:
        """The tokens whose embeddings and scores are here, where there are any."""
        if self.master:
            return range(0 if self.rank else spec.vocab_size)
        return range(
            spec.vocab_size * self.rank // self.ranks, spec.vocab_size * (self.rank + 1) // self.ranks
        )

    def holds(self, spec: ModelSpec, part: Part) -> bool:
        if self.rank and (part.name in ONCE or (self.master and part.layer < 0)):
            return False
        if part.layer >= 0:
            return self.first <= part.layer < self.last
        if part.name in ("embed", "positions"):
            return self.first == 0
        return self.last == spec.num_layers

    def cut(self, spec: ModelSpec, name: str, tensor: Tensor) -> Tensor:
        """What is here of one of a weight's tensors."""
        if name in BY_VOCABULARY:
            own = self.vocabulary(spec)
            return tensor[own.start : own.stop]
        if name in BY_INPUT:
            return self._share(tensor, 1).contiguous()
        if name not in BY_OUTPUT:
            return tensor
        if spec.family == "gpt2" and name.startswith("qkv"):  # queries, keys and values are one tensor
            return torch.cat([self._share(third, 0) for third in tensor.chunk(3)])
        return self._share(tensor, 0)

    def _share(self, tensor: Tensor, dim: int) -> Tensor:
        size = tensor.shape[dim] // self.ranks
        return tensor.narrow(dim, self.rank * size, size)

    def _renumbered(self, layers: frozenset[int]) -> frozenset[int]:
        return frozenset(i - self.first for i in layers if self.first <= i < self.last)


def slices(spec: ModelSpec, stages: int, ranks: int, *, master: bool = False) -> list[list[Slice]]:
    """A model as pipeline stages of tensor-parallel ranks, with as many layers each. Raises SpecError.

    master: see `Slice`.
    """
    if not 1 <= stages <= spec.num_layers:
        raise SpecError(
            f"{stages} pipeline stages of {spec.num_layers} layers",
            expected=f"1 to {spec.num_layers} stages",
            fix="another pp",
        )
    cuts = [spec.num_layers * i // stages for i in range(stages + 1)]
    found = [
        [Slice(first=first, last=last, rank=rank, ranks=ranks, master=master) for rank in range(ranks)]
        for first, last in pairwise(cuts)
    ]
    for stage in found:
        stage[0].shape(spec)
    return found


def weights_of(spec: ModelSpec, mine: Slice, get: Get, dtype: torch.dtype, device: str) -> Weights:
    """Only what a slice has is converted and kept. get: tensors as they are stored."""

    def cut(name: str, tensor: Tensor) -> Tensor:
        return mine.cut(spec, name, tensor).to(device=device, dtype=dtype)

    nothing = torch.zeros(0, spec.hidden_size, dtype=dtype, device=device)
    layers: list[dict[str, Tensor]] = [{} for _ in range(mine.last - mine.first)]
    others: dict[str, Tensor] = {"embed": nothing, "norm": nothing[:, 0], "head": nothing}
    for part in each_part(spec):
        if mine.holds(spec, part):
            tied = part.name == "head" and spec.tied and mine.first == 0
            whole = others["embed"] if tied else joined(spec, part, get, cut)
            (others if part.layer < 0 else layers[part.layer - mine.first])[part.name] = whole
    return Weights(layers=[Layer(**parts) for parts in layers], **others)
