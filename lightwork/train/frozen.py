"""The weights of a served model as training sees them: no second copy, whoever computes with them.

R rows  d hidden  V vocabulary  N outputs  K inputs
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightwork.kernels.cpu.formats import BF16, BF16_DOT
from lightwork.kernels.cpu.isa import host
from lightwork.models.compiled import CompiledModel
from lightwork.models.model import Model
from lightwork.models.spec import ModelSpec
from lightwork.models.transformer import logits, norm
from lightwork.models.unpacked import Unpacked
from lightwork.models.weights import Layer, Weights
from lightwork.train.windows import Frozen


class Tensors:
    """Weights that are tensors, as they are."""

    def __init__(self, spec: ModelSpec, weights: Weights) -> None:
        self.spec = spec
        self.dtype = weights.embed.dtype
        self._weights = weights

    def embed(self, tokens_R: Tensor, positions_R: Tensor) -> Tensor:
        x_Rd = F.embedding(tokens_R, self._weights.embed)
        if self._weights.positions is not None:
            x_Rd = x_Rd + F.embedding(positions_R, self._weights.positions)
        return x_Rd

    def layer(self, i: int) -> Layer:
        return self._weights.layers[i]

    def score(self, hidden_Rd: Tensor) -> Tensor:
        weights = self._weights
        return logits(weights, norm(hidden_Rd, weights.norm, weights.norm_bias, self.spec))


class Packed:
    """Weights that are packed for the compiled step: of one layer there is a copy, while it is worked on.

    bfloat16 is computed in bfloat16 where the processor does, as is usual; all else in float32.
    """

    def __init__(self, model: CompiledModel) -> None:
        layout, weights = model.layout, model.weights
        self.spec = model.spec
        halves = layout.form.code in (BF16, BF16_DOT) and host().dot16
        self.dtype = torch.bfloat16 if halves else torch.float32
        self._weights = Unpacked(layout, weights, self.dtype)

    def embed(self, tokens_R: Tensor, positions_R: Tensor) -> Tensor:
        return self._weights.embedding(tokens_R)

    def layer(self, i: int) -> Layer:
        return self._weights.layer(i)

    def score(self, hidden_Rd: Tensor) -> Tensor:
        normed_Rd = norm(hidden_Rd, self._weights.norm(), None, self.spec)
        return F.linear(normed_Rd, self._weights.head()).float()


def frozen(model: Model | CompiledModel) -> Frozen:
    """A served model's weights. Raises CheckpointError for a family that cannot be trained here."""
    return Tensors(model.spec, model.weights) if isinstance(model, Model) else Packed(model)
