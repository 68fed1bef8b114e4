"""Encoder and decoder in mBART's layout: names, weights, and a forward of either half over rows.

The layers are those of `transformer`, normalised before each part (Liu et al., "Multilingual Denoising
Pre-training for Neural Machine Translation", 2020); between attention and MLP a decoder's look at the source.
Who sees whom is up to `attend` and `look`, so that training, paged serving and drafting in blocks share this.

R rows  d hidden  H heads  D head size  V vocabulary  B sequences  T tokens  K keys
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightwork.models.parts import Named, Part
from lightwork.models.spec import ModelSpec
from lightwork.models.transformer import Attend, attention, mlp_down, mlp_up, norm
from lightwork.models.weights import Get, Layer, joined

Look = Callable[[int, Tensor], Tensor]
"""(layer, q [R, H, D]) -> what the rows see of their sources, [R, H, D]."""
KeysValues = tuple[Tensor, Tensor]
"""[K, H, D] each."""
OFFSET = 2
"""Rows of a table of positions before that of the first position."""


@dataclass(slots=True, kw_only=True)
class Cross:
    """How a decoder's layer looks at the source: q, out [d, d], kv [2d, d]."""

    norm: Tensor
    norm_bias: Tensor
    q: Tensor
    q_bias: Tensor
    kv: Tensor
    kv_bias: Tensor
    out: Tensor
    out_bias: Tensor


@dataclass(slots=True, kw_only=True)
class Half:
    """Encoder or decoder. positions [OFFSET + max_len, d]; embed_norm is applied to embeddings."""

    positions: Tensor
    embed_norm: Tensor
    embed_norm_bias: Tensor
    layers: list[Layer]
    norm: Tensor
    norm_bias: Tensor


@dataclass(slots=True, kw_only=True)
class Seq2Seq:
    """embed [V, d], of both halves and of the head. bias [1, V]: of the head. cross: of the decoder."""

    embed: Tensor
    bias: Tensor
    encoder: Half
    decoder: Half
    cross: list[Cross]

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor once."""
        yield from (self.embed, self.bias)
        layers = (*self.encoder.layers, *self.decoder.layers)
        parts: list[Half | Layer | Cross] = [self.encoder, self.decoder, *layers, *self.cross]
        for part in parts:
            values = [getattr(part, field.name) for field in fields(part)]
            yield from (value for value in values if isinstance(value, Tensor))


def encode(
    weights: Seq2Seq, spec: ModelSpec, tokens_R: Tensor, positions_R: Tensor, attend: Attend
) -> Tensor:
    """What the encoder makes of source rows, [R, d]."""
    return _run(weights, weights.encoder, spec, tokens_R, positions_R, attend, None)


def decode(
    weights: Seq2Seq, spec: ModelSpec, tokens_R: Tensor, positions_R: Tensor, attend: Attend, look: Look
) -> Tensor:
    """Normalised hidden states [R, d] of decoder rows."""
    return _run(weights, weights.decoder, spec, tokens_R, positions_R, attend, look)


def keys_values(weights: Seq2Seq, spec: ModelSpec, encoded_Kd: Tensor) -> list[KeysValues]:
    """What each layer of the decoder sees of encoded sources."""
    shape = (-1, 2, spec.num_heads, spec.head_size)
    return [F.linear(encoded_Kd, c.kv, c.kv_bias).view(shape).unbind(1) for c in weights.cross]  # type: ignore[misc]


def scores(weights: Seq2Seq, hidden_Rd: Tensor) -> Tensor:
    """Over the vocabulary, [R, V]."""
    return F.linear(hidden_Rd, weights.embed, weights.bias[0])


def ragged(lengths: Sequence[int]) -> Attend:
    """Attention within each of several sequences, one behind the other, every row to every one."""
    ends = [*torch.tensor(lengths).cumsum(0).tolist()]

    def attend(layer: int, q_RHD: Tensor, k_RHD: Tensor, v_RHD: Tensor) -> Tensor:
        spans = [slice(end - n, end) for n, end in zip(lengths, ends, strict=True)]
        return torch.cat([attended(q_RHD[at], k_RHD[at], v_RHD[at]) for at in spans])

    return attend


def attended(q_RHD: Tensor, k_KHD: Tensor, v_KHD: Tensor) -> Tensor:
    """What rows see of all keys, [R, H, D]."""
    q, k, v = (x.transpose(0, 1) for x in (q_RHD, k_KHD, v_KHD))
    return F.scaled_dot_product_attention(q, k, v).transpose(0, 1)


def _run(
    weights: Seq2Seq,
    half: Half,
    spec: ModelSpec,
    tokens_R: Tensor,
    positions_R: Tensor,
    attend: Attend,
    look: Look | None,
) -> Tensor:
    x_Rd = spec.embed_scale * F.embedding(tokens_R, weights.embed)
    x_Rd = x_Rd + F.embedding(positions_R + OFFSET, half.positions)
    x_Rd = norm(x_Rd, half.embed_norm, half.embed_norm_bias, spec)
    for i, layer in enumerate(half.layers):
        x_Rd = x_Rd + attention(i, x_Rd, layer, spec, None, attend)
        if look is not None:
            x_Rd = x_Rd + _crossed(i, x_Rd, weights.cross[i], spec, look)
        x_Rd = x_Rd + mlp_down(mlp_up(x_Rd, layer, spec), layer)
    return norm(x_Rd, half.norm, half.norm_bias, spec)


def _crossed(i: int, x_Rd: Tensor, cross: Cross, spec: ModelSpec, look: Look) -> Tensor:
    """What layer i's look at the source adds, [R, d]."""
    h_Rd = norm(x_Rd, cross.norm, cross.norm_bias, spec)
    q_RHD = F.linear(h_Rd, cross.q, cross.q_bias).view(-1, spec.num_heads, spec.head_size)
    return F.linear(look(i, q_RHD).flatten(1), cross.out, cross.out_bias)


# -- names


def from_checkpoint(spec: ModelSpec, get: Get) -> Seq2Seq:
    """Put the weights together from a checkpoint's tensors."""
    v, d = spec.vocab_size, spec.hidden_size
    cross: list[dict[str, Tensor]] = [{} for _ in range(spec.num_layers)]
    for part in _cross_parts(spec):
        cross[part.layer][part.name] = joined(spec, part, get)
    return Seq2Seq(
        embed=get("model.shared.weight", (v, d)),
        bias=get("final_logits_bias", (1, v)),
        encoder=_half(spec, "encoder", get),
        decoder=_half(spec, "decoder", get),
        cross=[Cross(**parts) for parts in cross],
    )


def to_checkpoint(weights: Seq2Seq, spec: ModelSpec) -> dict[str, Tensor]:
    """The tensors under their names in Hugging Face checkpoints."""
    state = {"model.shared.weight": weights.embed, "final_logits_bias": weights.bias}
    for half, name in ((weights.encoder, "encoder"), (weights.decoder, "decoder")):
        for part in _half_parts(spec, name):  # type: ignore[arg-type]
            state |= _apart(part, half.layers[part.layer] if part.layer >= 0 else half)
    for part in _cross_parts(spec):
        state |= _apart(part, weights.cross[part.layer])
    return state


def _apart(part: Part, owner: object) -> dict[str, Tensor]:
    names, shapes = zip(*part.tensors, strict=True)
    whole: Tensor = getattr(owner, part.name)
    return dict(zip(names, torch.split(whole, [shape[0] for shape in shapes]), strict=True))


def _half(spec: ModelSpec, name: Literal["encoder", "decoder"], get: Get) -> Half:
    layers: list[dict[str, Tensor]] = [{} for _ in range(_num_layers(spec, name))]
    others: dict[str, Tensor] = {}
    for part in _half_parts(spec, name):
        (others if part.layer < 0 else layers[part.layer])[part.name] = joined(spec, part, get)
    return Half(layers=[Layer(**parts) for parts in layers], **others)


def _num_layers(spec: ModelSpec, name: Literal["encoder", "decoder"]) -> int:
    return spec.encoder_layers if name == "encoder" else spec.num_layers


def _half_parts(spec: ModelSpec, name: Literal["encoder", "decoder"]) -> Iterator[Part]:
    d, f, half = spec.hidden_size, spec.ffn_size, f"model.{name}."
    yield Part(-1, "positions", [(half + "embed_positions.weight", (OFFSET + spec.max_len, d))])
    yield from _both(-1, "embed_norm", [half + "layernorm_embedding"], (d,))
    yield from _both(-1, "norm", [half + "layer_norm"], (d,))
    for i in range(_num_layers(spec, name)):
        at = f"{half}layers.{i}."
        yield from _both(i, "norm1", [at + "self_attn_layer_norm"], (d,))
        yield from _both(i, "qkv", [f"{at}self_attn.{p}_proj" for p in "qkv"], (d, d))
        yield from _both(i, "out", [at + "self_attn.out_proj"], (d, d))
        yield from _both(i, "norm2", [at + "final_layer_norm"], (d,))
        yield from _both(i, "up", [at + "fc1"], (f, d))
        yield from _both(i, "down", [at + "fc2"], (d, f))


def _cross_parts(spec: ModelSpec) -> Iterator[Part]:
    d = spec.hidden_size
    for i in range(spec.num_layers):
        at = f"model.decoder.layers.{i}.encoder_attn"
        yield from _both(i, "norm", [at + "_layer_norm"], (d,))
        yield from _both(i, "q", [at + ".q_proj"], (d, d))
        yield from _both(i, "kv", [f"{at}.{p}_proj" for p in "kv"], (d, d))
        yield from _both(i, "out", [at + ".out_proj"], (d, d))


def _both(layer: int, name: str, modules: Sequence[str], shape: tuple[int, ...]) -> Iterator[Part]:
    """A weight of one or more modules, and its bias."""
    weights: list[Named] = [(module + ".weight", shape) for module in modules]
    biases: list[Named] = [(module + ".bias", shape[:1]) for module in modules]
    yield Part(layer, name, weights)
    yield Part(layer, name + "_bias", biases)
