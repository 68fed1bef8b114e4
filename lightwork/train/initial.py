"""Fresh weights for a Llama-like ModelSpec, dense or of experts.

Normal with standard deviation 0.05 for small models, projections into the residual stream divided by sqrt(2
layers) (Radford et al., 2019). Layers 0 and 1 of a Llama with qkv_bias start with an induction circuit
(Olsson et al., 2022; starting attention near a known structure: Trockman and Kolter, "Mimetic
initialization", 2023), inside the Llama layout:

* Head 0 of layer 0 attends to the previous token and writes it into a random subspace. Its key bias and query
  bias are one vector, the latter rotated back by one position, so rotary position embedding lines them up one
  token apart.
* Head 0 of layer 1 compares the current token with that subspace in the pairs that rotary embedding hardly
  turns, so it attends to what followed an earlier occurrence of the token, and copies it.

d hidden  H query heads  G key-value heads  D head size  F MLP width  E experts  V vocabulary
"""

from __future__ import annotations

from math import sqrt
from typing import Protocol

import torch
from torch import Generator, Tensor

from lightwork.errors import UsageError
from lightwork.models.spec import ModelSpec
from lightwork.models.weights import Layer, Weights

STD = 0.05
SHARPNESS = 20.0  # of attention to the previous token: logits per unit of 1 - cos of a pair's angle
MATCH = 12.0  # logits of an equal token over a different one
WRITE = 0.5  # length of what the first head writes; embeddings have STD sqrt(d), about 0.6
COPY = 2.0  # length of what the second head copies
SLOW = 0.01  # radians per position below which a rotary pair compares content


class Normal(Protocol):
    def __call__(self, *shape: int, std: float = STD) -> Tensor: ...


def initial_weights(spec: ModelSpec, seed: int) -> Weights:
    """Float32 weights that require gradients. Raises UsageError for families other than dense Llama, and
    Qwen3 of experts."""
    if spec.family not in ("llama", "qwen3_moe") or not spec.gated or spec.mlp_bias:
        raise UsageError(
            f"{spec.family} cannot be trained from nothing",
            expected="a dense Llama, or a Qwen3 of experts",
            fix="another spec",
        )
    rng = Generator().manual_seed(seed)

    def normal(*shape: int, std: float = STD) -> Tensor:
        return torch.empty(shape).normal_(0.0, std, generator=rng)

    embed = normal(spec.vocab_size, spec.hidden_size)
    layers = [_layer(spec, i, normal) for i in range(spec.num_layers)]
    head = embed if spec.tied else normal(spec.vocab_size, spec.hidden_size)
    weights = Weights(embed=embed, layers=layers, norm=torch.ones(spec.hidden_size), head=head)
    if spec.family == "llama" and spec.qkv_bias:
        _induction(layers, spec, rng)
    for tensor in weights.tensors():
        tensor.requires_grad_(True)
    return weights


def _layer(spec: ModelSpec, i: int, normal: Normal) -> Layer:
    d, size = spec.hidden_size, spec.head_size
    f = spec.ffn_size if i in spec.moe else spec.dense_ffn_size or spec.ffn_size
    experts = (spec.num_experts,) if i in spec.moe else ()
    rows = (spec.num_heads + 2 * spec.num_kv_heads) * size
    std = STD / sqrt(2 * spec.num_layers)
    return Layer(
        norm1=torch.ones(d),
        qkv=normal(rows, d),
        qkv_bias=torch.zeros(rows) if spec.qkv_bias else None,
        out=normal(d, spec.num_heads * size, std=std),
        out_bias=torch.zeros(d) if spec.out_bias else None,
        q_norm=torch.ones(size) if spec.qk_norm else None,
        k_norm=torch.ones(size) if spec.qk_norm else None,
        norm2=torch.ones(d),
        up=normal(*experts, 2 * f, d),
        down=normal(*experts, d, f, std=std),
        router=normal(*experts, d) if experts else None,
    )


def _induction(layers: list[Layer], spec: ModelSpec, rng: Generator) -> None:
    """Set head 0 of the first two layers, in place."""
    first, second = layers[0], layers[1]
    d, size, half = spec.hidden_size, spec.head_size, spec.head_size // 2
    key_row, value_row = spec.num_heads * size, (spec.num_heads + spec.num_kv_heads) * size
    read_Dd, write_Dd, copy_Dd = (torch.linalg.qr(torch.randn(d, size, generator=rng)).Q.T for _ in range(3))
    angles = 1.0 / spec.rope.theta ** (torch.arange(half) / half)
    _attend_previous(first, angles, size, key_row)
    gain = sqrt(WRITE / sqrt(size))
    first.qkv[value_row : value_row + size] = gain * read_Dd
    first.out[:, :size] = gain * write_Dd.T
    copy_gain = sqrt(COPY / sqrt(size))
    slow = torch.cat((angles, angles)) < SLOW
    share = WRITE / sqrt(STD * STD * d + WRITE * WRITE)  # of the normalised stream that the first head wrote
    gain = sqrt(MATCH * sqrt(size) / (share * sqrt(1 - share**2) * float(slow.sum())))
    second.qkv[:size] = gain * slow[:, None] * read_Dd
    second.qkv[key_row : key_row + size] = gain * slow[:, None] * write_Dd
    second.qkv[value_row : value_row + size] = copy_gain * copy_Dd
    second.out[:, :size] = copy_gain * copy_Dd.T


def _attend_previous(layer: Layer, angles: Tensor, size: int, key_row: int) -> None:
    """Bias query head 0 and key head 0 so that the score of a key peaks one position before the query."""
    assert layer.qkv_bias is not None
    half, used = size // 2, size // 4
    length = sqrt(SHARPNESS * sqrt(size))
    query, key = layer.qkv_bias[:size], layer.qkv_bias[key_row : key_row + size]
    key[:used] = length
    query[:used] = length * angles[:used].cos()
    query[half : half + used] = -length * angles[:used].sin()
