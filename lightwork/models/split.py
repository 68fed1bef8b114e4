"""A slice of a model as a file, from which its rank reads one block after the other.

Attention and MLP of each layer are blocks of whole pages, in the order of the forward; before them comes the
embedding, behind them norm and head, where the slice has these. Numbers are float32. The file is made once
for a version of the checkpoint, a weight at a time: that takes no more memory than the largest of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightwork.home import keep
from lightwork.models.blocks import pages
from lightwork.models.checkpoint import open_checkpoint
from lightwork.models.packed import ALIGNMENT, kept_as, not_kept
from lightwork.models.parts import Part, each_part
from lightwork.models.slices import Slice
from lightwork.models.spec import ModelSpec
from lightwork.models.weights import Layer, Weights, joined, joined_shape
from lightwork.runtime.progress import Progress

VERSION = 1
FLOAT_BYTES = 4
ATTENTION = ("norm1", "norm1_bias", "qkv", "qkv_bias", "q_norm", "k_norm", "out", "out_bias")
EVERY_LAYER = ("norm1", "qkv", "out", "norm2", "up", "down")
"""Weights that no family's layers lack."""

Kind = Literal["embed", "attention", "mlp", "head"]
Name = tuple[Kind, int]


class Place(NamedTuple):
    """Of a weight: its first byte in the file, and its shape."""

    begin: int
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return FLOAT_BYTES * prod(self.shape)


@dataclass(frozen=True, slots=True)
class SplitBlock:
    """Bytes [begin, end) of the file. layer: -1 outside of layers. places: of its weights."""

    kind: Kind
    layer: int
    begin: int
    end: int
    places: Mapping[str, Place]

    def views(self, memory: Tensor, begin: int) -> dict[str, Tensor]:
        """Its weights. memory: uint8, bytes of the file from `begin` on."""
        found = {}
        for name, place in self.places.items():
            at = place.begin - begin
            found[name] = memory[at : at + place.nbytes].view(torch.float32).view(place.shape)
        return found


class Split:
    """Where everything of a slice lies. blocks: by name ("attention 3"), in the order of the forward."""

    def __init__(self, whole: ModelSpec, mine: Slice) -> None:
        self.whole = whole
        self.mine = mine
        self.blocks: dict[str, SplitBlock] = {}
        at = 0
        for (kind, layer), parts in groupby(self._parts(), _block):
            begin, places = at, {}
            for part in parts:
                place = Place(at, joined_shape(whole, part, partial(mine.cut, whole)))
                places[part.name] = place
                at += -(-place.nbytes // ALIGNMENT) * ALIGNMENT
            at = pages(begin, at)[1]
            name = kind if layer < 0 else f"{kind} {layer}"
            self.blocks[name] = SplitBlock(kind, layer, begin, at, places)
        self.nbytes = at

    def _parts(self) -> list[Part]:
        return [part for part in each_part(self.whole) if self.mine.holds(self.whole, part)]

    def file(self, folder: Path, progress: Progress | None = None) -> Path:
        """The file, made now if there is none of this version of the checkpoint. Raises CheckpointError."""
        checkpoint = open_checkpoint(folder, progress)
        kept = kept_as(VERSION, checkpoint, self.whole, self.mine, "split")
        if kept.is_file() and kept.stat().st_size == self.nbytes:
            return kept

        def cut(name: str, tensor: Tensor) -> Tensor:
            return self.mine.cut(self.whole, name, tensor).to(torch.float32)

        def write(part_path: Path) -> None:
            with part_path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, self.nbytes)
                for part in each_part(self.whole):
                    if self.mine.holds(self.whole, part):
                        tensor = joined(self.whole, part, checkpoint.get, cut)
                        file.seek(self._place(part).begin)
                        file.write(tensor.contiguous().numpy().data)
                    else:
                        for name, _ in part.tensors:
                            checkpoint.skip(name)
            checkpoint.check_all_read()

        try:
            keep(kept, write)
        except OSError as error:
            raise not_kept(self.nbytes, error) from error
        return kept

    def _place(self, part: Part) -> Place:
        kind, layer = _block(part)
        return self.blocks[kind if layer < 0 else f"{kind} {layer}"].places[part.name]


def _block(part: Part) -> Name:
    """The block that a weight is in."""
    if part.layer < 0:
        return ("embed" if part.name in ("embed", "positions") else "head"), -1
    return ("attention" if part.name in ATTENTION else "mlp"), part.layer


def layer_of(views: Mapping[str, Tensor]) -> Layer:
    """What is there of a layer, and empty tensors for what is not."""
    nothing = torch.empty(0)
    return Layer(**{**dict.fromkeys(EVERY_LAYER, nothing), **views})


def head_of(views: Mapping[str, Tensor]) -> Weights:
    """The last norm and the head."""
    return Weights(embed=torch.empty(0), layers=[], **views)
