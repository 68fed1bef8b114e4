"""Next-token training from nothing, over any source of batches.

AdamW (Loshchilov and Hutter, 2019), linear warm-up and cosine decay, clipped gradients; the loss is over the
tokens a batch scores. The forward pass is the one that serves: `models.transformer.forward` with dense causal
attention.

B sequences  T tokens  R = B T rows  N scored rows  V vocabulary  H heads  G key-value heads  D head size
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import cos, pi
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lightwork.models.spec import ModelSpec
from lightwork.models.transformer import Adapt, Attend, Routed, forward, logits, unseen
from lightwork.models.weights import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """tokens_BT and positions_BT: int64. scored_BT: bool, whether a token is to be predicted from those
    before it.
    """

    tokens_BT: Tensor
    positions_BT: Tensor
    scored_BT: Tensor


class Counted(Protocol):
    """Any batch: its tokens are counted."""

    @property
    def tokens_BT(self) -> Tensor: ...


B = TypeVar("B", bound=Counted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """steps: of the whole schedule. stop: end after so many, or None.

    learning_rate: after warm-up; at the end of the schedule it is floor times that.
    """

    steps: int
    stop: int | None = None
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    floor: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.05
    max_norm: float = 1.0

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        decay = 0.5 * (1.0 + cos(pi * step / self.steps))
        return (
            self.learning_rate
            * min(1.0, (step + 1) / self.warmup_steps)
            * (self.floor + (1.0 - self.floor) * decay)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """After a step. loss: mean cross entropy of the scored tokens, in nats. tokens: of all steps so far."""

    step: int
    loss: float
    rate: float
    tokens: int


def pretrain(
    weights: Weights, spec: ModelSpec, batches: Iterable[Batch], settings: Settings
) -> Iterator[Progress]:
    """Train the weights in place, one step per batch, and report each. Ends early if the batches do."""

    def loss(batch: Batch) -> Tensor:
        return F.cross_entropy(*predict(weights, spec, batch))

    return optimise(weights.tensors(), loss, batches, settings)


def optimise(
    tensors: Iterable[Tensor],
    loss_of: Callable[[B], Tensor],
    batches: Iterable[B],
    settings: Settings,
) -> Iterator[Progress]:
    """`pretrain` for any loss of a batch: a step for each, on the tensors in place."""
    tensors = list(tensors)
    optimizer = torch.optim.AdamW(
        [
            {"params": [t for t in tensors if t.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [t for t in tensors if t.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(settings.beta1, settings.beta2),
    )
    tokens = 0
    for step, batch in zip(range(settings.stop or settings.steps), batches, strict=False):
        rate = settings.rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(tensors, settings.max_norm)
        optimizer.step()
        tokens += batch.tokens_BT.numel()
        yield Progress(step=step, loss=loss.item(), rate=rate, tokens=tokens)


def predict(
    weights: Weights,
    spec: ModelSpec,
    batch: Batch,
    adapt: Adapt | None = None,
    routed: Routed = unseen,
) -> tuple[Tensor, Tensor]:
    """Logits [N, V] for the scored tokens, and the tokens [N], in row-major order. adapt, routed: see
    `forward`."""
    tokens, scored = batch.tokens_BT, batch.scored_BT[:, 1:]
    inputs_BT, positions_BT = tokens[:, :-1], batch.positions_BT[:, :-1]
    attend = dense_attention(len(tokens), spec)
    tokens_R, positions_R = inputs_BT.reshape(-1), positions_BT.reshape(-1)
    hidden_Rd = forward(weights, spec, tokens_R, positions_R, attend, adapt, routed)
    return logits(weights, hidden_Rd[scored.reshape(-1)]), tokens[:, 1:][scored]


def dense_attention(num_sequences: int, spec: ModelSpec) -> Attend:
    """Causal attention within each of B sequences of one length, row-major."""

    def attend(layer: int, q_RHD: Tensor, k_RGD: Tensor, v_RGD: Tensor) -> Tensor:
        q, k, v = (
            x.view(num_sequences, -1, x.shape[1], x.shape[2]).transpose(1, 2) for x in (q_RHD, k_RGD, v_RGD)
        )
        if spec.num_kv_heads != spec.num_heads:
            k, v = (x.repeat_interleave(spec.num_heads // spec.num_kv_heads, 1) for x in (k, v))
        out_BHTD = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out_BHTD.transpose(1, 2).reshape(q_RHD.shape)

    return attend
