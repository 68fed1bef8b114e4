"""Layers that start on a guess of what the layers before them will give (BlockLLM's speculative hops).

A surrogate, a pruned copy of some layers, says quickly what these will give; the layers behind start on
that. When the true output is there and differs from the guess by more than a tolerance, what was begun is
dropped and computed again. Where both halves are on devices of their own, a hit saves the time of the true
layers and of the hop.

R rows  d hidden  F MLP width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightwork.errors import RangeError
from lightwork.kernels.rows import Rows
from lightwork.models.model import KVPool, Model, paged
from lightwork.models.transformer import embed, normalise, run_layers
from lightwork.models.weights import Layer


class Speculation:
    """Computes a model's hidden states so: `model.hidden = Speculation(model, ...).hidden`. Without adapters.

    surrogates: of as many layers, from `first` on. tolerance: of the greatest distance of a row from its
    guess, over its length; 0 accepts only what is equal. hits, misses: steps.
    """

    def __init__(
        self, model: Model, surrogates: Sequence[Layer], *, first: int, tolerance: float = 0.0
    ) -> None:
        cut = first + len(surrogates)
        if not surrogates or first < 0 or cut >= model.spec.num_layers or tolerance < 0.0:
            raise RangeError(
                f"layers {first} to {cut - 1} of {model.spec.num_layers} guessed, tolerance {tolerance}",
                expected="one layer or more, with others behind them, and a tolerance from 0 on",
                fix="fewer surrogates",
            )
        self.hits = self.misses = 0
        self._model, self._surrogates = model, surrogates
        self._first, self._cut, self._tolerance = first, cut, tolerance

    def hidden(self, rows: Rows, kv: KVPool) -> Tensor:
        """Normalised hidden states [R, d]; keys and values are written, of the true layers."""
        model, first, cut = self._model, self._first, self._cut
        weights, spec, device = model.weights, model.spec, model.device
        at_R = torch.from_numpy(rows.positions).to(device)
        attend = paged(spec, rows, kv, device)

        def run(layers: Sequence[Layer], x_Rd: Tensor, number: int) -> Tensor:
            return run_layers(layers, spec, x_Rd, at_R, attend, first=number)

        x_Rd = embed(weights, torch.from_numpy(rows.tokens).to(device), at_R)
        x_Rd = run(weights.layers[:first], x_Rd, 0)
        guess_Rd = run(self._surrogates, x_Rd, first)
        ahead_Rd = run(weights.layers[cut:], guess_Rd, cut)
        true_Rd = run(weights.layers[first:cut], x_Rd, first)  # writes over the surrogates' keys and values
        if self._is_near(true_Rd, guess_Rd):
            self.hits += 1
            return normalise(weights, spec, ahead_Rd)
        self.misses += 1
        return normalise(weights, spec, run(weights.layers[cut:], true_Rd, cut))

    def _is_near(self, true_Rd: Tensor, guess_Rd: Tensor) -> bool:
        away_R = (true_Rd - guess_Rd).norm(dim=-1)
        return bool((away_R <= self._tolerance * true_Rd.norm(dim=-1)).all())


def pruned(layer: Layer, keep: float) -> Layer:
    """A copy of a dense layer with this share of its MLP's neurons, those with the longest weights."""
    if layer.router is not None or not 0.0 < keep <= 1.0:
        raise RangeError(f"keep is {keep}", expected="above 0 and up to 1, of a layer without experts")
    width = layer.down.shape[1]
    parts = len(layer.up) // width  # gate and value, or one
    lengths_F = layer.down.norm(dim=0) * layer.up.view(parts, width, -1).norm(dim=-1).prod(0)
    kept = lengths_F.topk(max(1, round(keep * width))).indices.sort().values
    rows = torch.cat([kept + i * width for i in range(parts)])
    bias = None if layer.up_bias is None else layer.up_bias[rows]
    return replace(layer, up=layer.up[rows], up_bias=bias, down=layer.down[:, kept].contiguous())
