"""One sequence forward and back through frozen layers and their adapter, in windows of any size.

Forward keeps what each layer was given, and its keys and values. Backward takes the layers last to first and
a layer's windows last to first: a window is computed again from what was kept, with the keys and values
before it as inputs. Its own keys and values are outputs like any other, since all later windows have sent
their gradients back to them: these lie in two accumulators, of one layer at a time. So no window knows how
large the others are, and what is held at once is one window of one layer.

T tokens of the sequence  R of a window  d hidden  H query heads  G key-value heads  D head size  V vocabulary
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lightwork.errors import InvariantError
from lightwork.models.spec import ModelSpec
from lightwork.models.transformer import Attend, block, rotation
from lightwork.models.weights import Layer
from lightwork.serve.training import Slice, Training
from lightwork.train.lora import Lora


class Frozen(Protocol):
    """A model's weights, as they are served, for training what is added to them."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        ...

    def embed(self, tokens_R: Tensor, positions_R: Tensor) -> Tensor:
        """The input [R, d] of the first layer."""
        ...

    def layer(self, i: int) -> Layer: ...

    def score(self, hidden_Rd: Tensor) -> Tensor:
        """Logits [R, V], of the last layer's output."""
        ...


class Windows:
    """What is kept of one sequence between its windows.

    tokens_T: the sequence. weights_T: what the prediction of each token counts for in the loss, 0 for those
    that are given; the first one's is not looked at.
    """

    def __init__(self, frozen: Frozen, lora: Lora, tokens_T: Tensor, weights_T: Tensor) -> None:
        spec, length = frozen.spec, len(tokens_T)
        make = partial(torch.zeros, dtype=frozen.dtype, device=tokens_T.device)
        self._frozen, self._lora = frozen, lora
        self._tokens_T = tokens_T
        self._gold_T = torch.cat((tokens_T[1:], tokens_T[:1]))
        self._weights_T = torch.cat((weights_T[1:], weights_T.new_zeros(1))).to(frozen.dtype)
        heads = (length, spec.num_kv_heads, spec.head_size)
        self._inputs_LTd = make((spec.num_layers, length, spec.hidden_size))
        self._keys_LTGD = make((spec.num_layers, *heads))
        self._values_LTGD = make((spec.num_layers, *heads))
        self._dx_Td = make((length, spec.hidden_size))
        self._dk_TGD = make(heads)
        self._dv_TGD = make(heads)
        self._way = Training([length], spec.num_layers)

    @property
    def nbytes(self) -> int:
        """Bytes kept between windows."""
        kept = (self._inputs_LTd, self._keys_LTGD, self._values_LTGD, self._dx_Td, self._dk_TGD, self._dv_TGD)
        return sum(t.nbytes for t in kept)

    def compute(self, piece: Slice) -> float:
        """The next slice; returns what it adds to the loss. Raises InvariantError for any other."""
        if self._way.ahead(piece.count) != [piece]:
            raise InvariantError(f"{piece} is computed", expected=f"{self._way.ahead(1)}")
        self._way.move([piece])
        layer, start, count, back = piece
        if layer == len(self._inputs_LTd):
            return self._lose(start, count)
        (self._backward if back else self._forward)(layer, start, count)
        return 0.0

    @torch.no_grad()
    def _forward(self, layer: int, start: int, count: int) -> None:
        """The next window through a layer."""
        end = start + count
        keys_TGD, values_TGD = self._keys_LTGD[layer], self._values_LTGD[layer]

        def attend(i: int, q_RHD: Tensor, k_RGD: Tensor, v_RGD: Tensor) -> Tensor:
            keys_TGD[start:end], values_TGD[start:end] = k_RGD, v_RGD
            return self._attend(i, q_RHD, keys_TGD[:end], values_TGD[:end])

        x_Rd = self._inputs_LTd[layer, start:end] if layer else self._embedded(start, end)
        y_Rd = self._block(layer, x_Rd, start, attend)
        into_Td = self._inputs_LTd[layer + 1] if layer + 1 < len(self._inputs_LTd) else self._dx_Td
        into_Td[start:end] = y_Rd

    def _embedded(self, start: int, end: int) -> Tensor:
        positions_R = torch.arange(start, end, device=self._tokens_T.device)
        self._inputs_LTd[0, start:end] = self._frozen.embed(self._tokens_T[start:end], positions_R)
        return self._inputs_LTd[0, start:end]

    def _lose(self, start: int, count: int) -> float:
        """What the next window's predictions add to the loss; its gradient to the last layer's output is
        kept."""
        window = slice(start, start + count)
        with torch.enable_grad():
            x_Rd = self._dx_Td[window].detach().clone().requires_grad_()
            losses_R = F.cross_entropy(self._frozen.score(x_Rd), self._gold_T[window], reduction="none")
            loss = losses_R @ self._weights_T[window].to(losses_R.dtype)
            (self._dx_Td[window],) = torch.autograd.grad(loss, x_Rd)
        return float(loss.detach())

    def _backward(self, layer: int, start: int, count: int) -> None:
        """The next window back through a layer; adds to the adapter's gradients."""
        window = slice(start, start + count)
        x_Rd = self._inputs_LTd[layer, window].detach().requires_grad_()
        keys_SGD = self._keys_LTGD[layer, :start].detach().requires_grad_()
        values_SGD = self._values_LTGD[layer, :start].detach().requires_grad_()
        own: list[Tensor] = []

        def attend(i: int, q_RHD: Tensor, k_RGD: Tensor, v_RGD: Tensor) -> Tensor:
            own.extend((k_RGD, v_RGD))
            return self._attend(i, q_RHD, torch.cat((keys_SGD, k_RGD)), torch.cat((values_SGD, v_RGD)))

        parameters = self._lora.of_layer(layer)
        with torch.enable_grad():
            y_Rd = self._block(layer, x_Rd, start, attend)
            dx, dk, dv, *gradients = torch.autograd.grad(
                [y_Rd, *own],
                [x_Rd, keys_SGD, values_SGD, *parameters],
                [self._dx_Td[window], self._dk_TGD[window], self._dv_TGD[window]],
            )
        self._dx_Td[window] = dx
        self._dk_TGD[:start] += dk
        self._dv_TGD[:start] += dv
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        if start == 0:
            self._dk_TGD.zero_()
            self._dv_TGD.zero_()

    def _block(self, layer: int, x_Rd: Tensor, start: int, attend: Attend) -> Tensor:
        spec = self._frozen.spec
        positions_R = torch.arange(start, start + len(x_Rd), device=x_Rd.device)
        cos_sin = rotation(spec, positions_R, x_Rd.dtype)
        return block(layer, x_Rd, self._frozen.layer(layer), spec, cos_sin, attend, self._lora.adapt)

    def _attend(self, i: int, q_RHD: Tensor, keys_SGD: Tensor, values_SGD: Tensor) -> Tensor:
        """Attention of the last R of S tokens."""
        seen, window = len(keys_SGD), self._frozen.spec.window(i)
        rows = torch.arange(seen - len(q_RHD), seen, device=q_RHD.device)[:, None]
        columns = torch.arange(seen, device=q_RHD.device)
        mask = columns <= rows
        if window:
            mask &= columns > rows - window
        q, k, v = (x.transpose(0, 1)[None] for x in (q_RHD, keys_SGD, values_SGD))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return out[0].transpose(0, 1)
