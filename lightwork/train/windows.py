"""One sequence forward and back through frozen layers and their adapter, in windows of any size.

Forward is a prefill in chunks that keeps what each layer was given, and its keys and values. Backward takes
the layers last to first and a layer's windows last to first: a window is computed again from what was kept,
with the keys and values before it as inputs. Its own keys and values are outputs like any other, since all
later windows have sent their gradients back to them: these lie in two accumulators, of one layer at a time.
So no window knows how large the others are, and what is held at once is one window of one layer.

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
from lightwork.models.transformer import block, rotary
from lightwork.models.weights import Layer
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
        self._forward_to = 0
        self._back = (spec.num_layers - 1, length)

    @property
    def nbytes(self) -> int:
        """Bytes kept between windows."""
        kept = (self._inputs_LTd, self._keys_LTGD, self._values_LTGD, self._dx_Td, self._dk_TGD, self._dv_TGD)
        return sum(t.nbytes for t in kept)

    @torch.no_grad()
    def forward(self, start: int, count: int) -> float:
        """The next `count` tokens through all layers; returns what they add to the loss."""
        if start != self._forward_to:
            raise InvariantError(f"forward from {start}", expected=f"from {self._forward_to}")
        end = start + count
        positions_R = torch.arange(start, end, device=self._tokens_T.device)
        x_Rd = self._frozen.embed(self._tokens_T[start:end], positions_R)
        cos_sin = self._cos_sin(positions_R)
        for i in range(self._frozen.spec.num_layers):
            self._inputs_LTd[i, start:end] = x_Rd

            def attend(i: int, q_RHD: Tensor, k_RGD: Tensor, v_RGD: Tensor) -> Tensor:
                keys_TGD, values_TGD = self._keys_LTGD[i], self._values_LTGD[i]
                keys_TGD[start:end], values_TGD[start:end] = k_RGD, v_RGD
                return self._attend(i, q_RHD, keys_TGD[:end], values_TGD[:end])

            layer = self._frozen.layer(i)
            x_Rd = block(i, x_Rd, layer, self._frozen.spec, cos_sin, attend, self._lora.added)
        self._forward_to = end
        return self._lose(x_Rd, slice(start, end))

    def _lose(self, x_Rd: Tensor, window: slice) -> float:
        """The loss of a window's predictions, and its gradient to the last layer's output."""
        with torch.enable_grad():
            x_Rd = x_Rd.detach().requires_grad_()
            logits_RV = self._frozen.score(x_Rd)
            losses_R = F.cross_entropy(logits_RV, self._gold_T[window], reduction="none")
            loss = losses_R @ self._weights_T[window].to(losses_R.dtype)
            (self._dx_Td[window],) = torch.autograd.grad(loss, x_Rd)
        return float(loss)

    def backward(self, layer: int, start: int, count: int) -> None:
        """The next window back, of tokens [start, start + count); adds to the adapter's gradients."""
        if (layer, start + count) != self._back or self._forward_to < len(self._tokens_T):
            raise InvariantError(f"backward of layer {layer} from {start + count}", expected=f"{self._back}")
        window = slice(start, start + count)
        positions_R = torch.arange(start, start + count, device=self._tokens_T.device)
        x_Rd = self._inputs_LTd[layer, window].detach().requires_grad_()
        keys_SGD = self._keys_LTGD[layer, :start].detach().requires_grad_()
        values_SGD = self._values_LTGD[layer, :start].detach().requires_grad_()
        own: list[Tensor] = []

        def attend(i: int, q_RHD: Tensor, k_RGD: Tensor, v_RGD: Tensor) -> Tensor:
            own.extend((k_RGD, v_RGD))
            return self._attend(i, q_RHD, torch.cat((keys_SGD, k_RGD)), torch.cat((values_SGD, v_RGD)))

        spec, parameters = self._frozen.spec, self._lora.of_layer(layer)
        with torch.enable_grad():
            cos_sin = self._cos_sin(positions_R)
            weights = self._frozen.layer(layer)
            y_Rd = block(layer, x_Rd, weights, spec, cos_sin, attend, self._lora.added)
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
        self._back = (layer, start)
        if start == 0:
            self._back = (layer - 1, len(self._tokens_T))
            self._dk_TGD.zero_()
            self._dv_TGD.zero_()

    def _cos_sin(self, positions_R: Tensor) -> tuple[Tensor, Tensor] | None:
        spec = self._frozen.spec
        if spec.position == "learned":
            return None
        return rotary(spec.rope, spec.head_size, positions_R, self._frozen.dtype)

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
