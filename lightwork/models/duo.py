"""Duo-LLM: the MLP of every layer is big, small or left out, as each token's routing pattern says.

Paper:  "Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models", 2024
Idea:   a layer has two MLPs behind one norm; a choice per token and layer says which of them adds to the
        residual stream, or that neither does; attention always runs
Shapes: tokens [R], a choice of SKIP, SMALL, BIG per row and layer -> hidden states [R, d], choices [R, L]
Cost:   per row and layer attention, and 6 d F operations of the chosen width F; an MLP that no row of a
        forward chose is not read
Claims: duo_llm
Differs: -
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lightwork.errors import RangeError
from lightwork.models.spec import ModelSpec
from lightwork.models.tiles import in_tiles
from lightwork.models.transformer import (
    Attend,
    attention,
    embed,
    mlp_down,
    mlp_up,
    normalise,
    rotation,
)
from lightwork.models.weights import Layer, Weights

SKIP, SMALL, BIG = range(3)

Choose = Callable[[int, Tensor], Tensor]
"""(layer, hidden states [R, d] behind its attention) -> SKIP, SMALL or BIG of each row, [R]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Duo:
    """Two models that share all but their MLPs: either is an ordinary checkpoint. spec: of the big one.

    L layers  d hidden
    """

    spec: ModelSpec
    big: Weights
    small: Weights

    @property
    def small_spec(self) -> ModelSpec:
        return narrowed(self.spec, self.small.layers[0].down.shape[1])

    @property
    def widths(self) -> Tensor:
        """Width of the MLP that each choice takes, int64 [3]."""
        return torch.tensor([0, self.small_spec.ffn_size, self.spec.ffn_size])

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor once."""
        yield from self.big.tensors()
        for layer in self.small.layers:
            yield from (layer.up, layer.down)

    def mlp_flops(self, choices_RL: Tensor) -> int:
        """Operations of the MLPs' products, a multiply-add counting as two."""
        return int(2 * self._params_per_width * self.widths[choices_RL].sum())

    def mlp_bytes(self, choices_RL: Tensor) -> int:
        """Bytes of MLP weights that one forward of these rows reads: of each layer what any row chose."""
        used = sum(
            int(self.widths[choice]) * int((choices_RL == choice).any(0).sum()) for choice in (SMALL, BIG)
        )
        return used * self._params_per_width * self.big.embed.element_size()

    @property
    def _params_per_width(self) -> int:
        return self.spec.hidden_size * (3 if self.spec.gated else 2)


def narrowed(spec: ModelSpec, width: int) -> ModelSpec:
    """The same shape with MLPs of this width."""
    return replace(spec, ffn_size=width, dense_ffn_size=width if spec.dense_ffn_size else 0)


def given(choices_RL: Tensor) -> Choose:
    """Choices that were made before, of any number type."""
    return lambda layer, x_Rd: choices_RL[:, layer]


def forward(
    duo: Duo, tokens_R: Tensor, positions_R: Tensor, attend: Attend, choose: Choose
) -> tuple[Tensor, Tensor]:
    """Normalised hidden states [R, d], and the choices made, int64 [R, L].

    With one choice for all rows and layers these are the bits of `transformer.forward`. Raises RangeError for
    a choice that is none, naming its layer and token.
    """
    x_Rd = embed(duo.big, tokens_R, positions_R)
    cos_sin = rotation(duo.spec, positions_R, x_Rd.dtype)
    chosen = []
    for i, layer in enumerate(duo.big.layers):
        x_Rd = x_Rd + attention(i, x_Rd, layer, duo.spec, cos_sin, attend)
        choices_R = checked(choose(i, x_Rd), i, len(x_Rd))
        x_Rd = add_mlp(duo, i, x_Rd, choices_R)
        chosen.append(choices_R)
    return normalise(duo.big, duo.spec, x_Rd), torch.stack(chosen, 1)


def checked(choices_R: Tensor, layer: int, num_rows: int) -> Tensor:
    """The choices of a layer, int64 [R]. Raises RangeError for what is none of the three, NaN included."""
    if choices_R.shape != (num_rows,):
        raise RangeError(
            f"layer {layer} has choices of shape {tuple(choices_R.shape)}", expected=f"({num_rows},)"
        )
    wrong_R = (choices_R != SKIP) & (choices_R != SMALL) & (choices_R != BIG)
    if wrong_R.any():
        token = int(wrong_R.nonzero()[0])
        raise RangeError(
            f"the choice of token {token} in layer {layer} is {choices_R[token].item()}",
            expected=f"{SKIP} (skip), {SMALL} (small) or {BIG} (big)",
            fix="check what chose it, and its weights",
        )
    return choices_R.long()


def add_mlp(duo: Duo, layer: int, x_Rd: Tensor, choices_R: Tensor, tile: int = 0) -> Tensor:
    """The layer's output [R, d]. tile: rows computed at once, see `in_tiles`; 0 computes all."""
    for choice, weights, spec in ((SMALL, duo.small, duo.small_spec), (BIG, duo.big, duo.spec)):
        rows = (choices_R == choice).nonzero()[:, 0]
        if not len(rows):
            continue
        y_Rd = in_tiles(partial(_mlp, weights.layers[layer], spec), x_Rd[rows], tile)
        x_Rd = x_Rd.index_add(0, rows, y_Rd)
    return x_Rd


def _mlp(layer: Layer, spec: ModelSpec, x_Rd: Tensor) -> Tensor:
    return mlp_down(mlp_up(x_Rd, layer, spec), layer)
