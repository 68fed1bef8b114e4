"""Packed weights as tensors again, a layer at a time: for what needs them another way round than steps do.

B blocks of 64 outputs  N outputs  K inputs  d hidden  V vocabulary
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightwork.errors import CheckpointError
from lightwork.kernels.cpu.formats import BF16, BF16_DOT, BLOCK, CENTRE, F16, F32, MatrixFormat
from lightwork.models.packed import Layout
from lightwork.models.weights import Layer

KINDS = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16, BF16_DOT: torch.bfloat16}
EMBEDDED = {-1: torch.float32, 0: torch.bfloat16, 1: torch.float16}
VECTORS = ("norm1", "qkv_bias", "q_norm", "k_norm", "out_bias", "norm2", "up_bias", "down_bias")


class Unpacked:
    """The weights of a layout's bytes, of type dtype, made when they are asked for.

    The last layer is kept. Raises CheckpointError for families that are not dense and Llama-like.
    """

    def __init__(self, layout: Layout, weights: NDArray[np.uint8], dtype: torch.dtype) -> None:
        spec = layout.spec
        if spec.moe or spec.norm == "layer":
            raise CheckpointError(
                f"weights of {spec.family} models cannot be unpacked", expected="a dense Llama-like model"
            )
        self.spec, self.dtype, self._layout = spec, dtype, layout
        with warnings.catch_warnings(action="ignore"):  # that they are read-only
            self._bytes = torch.from_numpy(weights)
        self._last: tuple[int, Layer] | None = None

    def embedding(self, tokens_R: Tensor) -> Tensor:
        """Rows of the embedding, [R, d]."""
        layout, d = self._layout, self.spec.hidden_size
        end = layout.embed + self.spec.vocab_size * d * layout.embed_bytes
        table_Vd = self._bytes[layout.embed : end].view(EMBEDDED[layout.embed_half]).view(-1, d)
        return table_Vd[tokens_R].to(self.dtype)

    def norm(self) -> Tensor:
        return self._floats(self._layout.norm, self.spec.hidden_size)

    def head(self) -> Tensor:
        """[V, d]"""
        return self._matrix(self._layout.head, self.spec.vocab_size, self.spec.hidden_size)

    def layer(self, i: int) -> Layer:
        if self._last is None or self._last[0] != i:
            self._last = None  # its memory first
            self._last = i, self._layer(i)
        return self._last[1]

    def _layer(self, i: int) -> Layer:
        spec, place = self.spec, self._layout.place
        d, inside = spec.hidden_size, spec.num_heads * spec.head_size
        ffn = spec.dense_ffn_size or spec.ffn_size
        width = inside + 2 * spec.num_kv_heads * spec.head_size
        lengths = {"qkv_bias": width, "q_norm": spec.head_size, "k_norm": spec.head_size, "up_bias": ffn}
        lengths["up_bias"] *= 2 if spec.gated else 1
        halves = [self._matrix(place(i, "up") + g, ffn, d) for g in range(2 if spec.gated else 1)]
        return Layer(
            qkv=self._matrix(place(i, "qkv"), width, d),
            out=self._matrix(place(i, "out"), d, inside),
            up=torch.cat(halves),
            down=self._matrix(place(i, "down"), d, ffn),
            **{
                name: self._floats(place(i, name), lengths.get(name, d))
                for name in VECTORS
                if place(i, name) >= 0
            },
        )

    def _floats(self, place: int, length: int) -> Tensor:
        return self._bytes[4 * place : 4 * (place + length)].view(torch.float32).to(self.dtype)

    def _matrix(self, number: int, outputs: int, inputs: int) -> Tensor:
        offset, blocks, _, block = self._layout.matrices[number]
        packed = self._bytes[offset : offset + blocks * block].view(blocks, block)
        return unpack(packed, self._layout.form, inputs)[:outputs, :inputs].to(self.dtype)


def unpack(packed: Tensor, form: MatrixFormat, inputs: int) -> Tensor:
    """Blocks as `kernels.cpu.pack` lays them out, uint8 [B, block bytes], to a matrix [64 B, padded K]."""
    if form.code in CENTRE:
        return _decoded(packed, form, inputs)
    # As whole words, pairs of bfloat16 too: moving halves takes twice as long.
    words = packed.view(torch.int16 if form.code in (BF16, F16) else torch.int32).view(len(packed), -1, BLOCK)
    return words.transpose(1, 2).contiguous().view(KINDS[form.code]).view(len(packed) * BLOCK, -1)


def _decoded(packed: Tensor, form: MatrixFormat, inputs: int) -> Tensor:
    """Of groups of codes, float32."""
    num_groups = form.padded(inputs) // form.group
    groups = packed.view(len(packed), num_groups, -1)
    head = 2 * BLOCK * (2 if form.affine else 1)
    numbers = groups[..., :head].contiguous().view(torch.float16).view(len(packed), num_groups, -1, BLOCK)
    codes = groups[..., head:]
    if form.four_bits:
        halves = codes.reshape(len(packed), num_groups, -1, 2, 16, 4)
        codes = torch.stack((halves & 15, halves >> 4), 4)
    codes = codes.reshape(len(packed), num_groups, -1, BLOCK, 4).permute(0, 3, 1, 2, 4)
    codes = codes.reshape(len(packed), BLOCK, num_groups, form.group)
    values = torch.tensor(form.table)[codes.int()] if form.table else codes.float() - CENTRE[form.code]
    scales = numbers[:, :, 0].permute(0, 2, 1)[..., None].float()
    matrix = values * scales
    if form.affine:
        matrix += numbers[:, :, 1].permute(0, 2, 1)[..., None].float()
    return matrix.view(len(packed) * BLOCK, -1)
