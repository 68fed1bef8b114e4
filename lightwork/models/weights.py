"""Weights as the forward pass wants them, and their names in Hugging Face checkpoints.

Projections that read the same input are fused: queries, keys and values; gate and up. `parts.each_part` names
the tensors that a weight is made of, `from_checkpoint` puts them together; `to_checkpoint` takes them apart.

d: hidden size. H query heads, G key-value heads, D head size. F: MLP width. E experts. V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lightwork.errors import CheckpointError
from lightwork.models.parts import Part, each_part
from lightwork.models.spec import ModelSpec

Get = Callable[[str, tuple[int, ...]], Tensor]
"""(name, expected shape) -> the tensor; raises CheckpointError."""
Cut = Callable[[str, Tensor], Tensor]
"""(name of a weight, one of its tensors, output-major) -> what is wanted of it."""


@dataclass(slots=True, kw_only=True)
class Layer:
    """One layer.

    Qkv [(H + 2G) D, d], out [d, H D], up [2F or F, d], down [d, F]; router [E, d], experts [E, ...].
    """

    norm1: Tensor
    norm1_bias: Tensor | None = None
    qkv: Tensor
    qkv_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    out: Tensor
    out_bias: Tensor | None = None
    norm2: Tensor
    norm2_bias: Tensor | None = None
    router: Tensor | None = None
    up: Tensor
    up_bias: Tensor | None = None
    down: Tensor
    down_bias: Tensor | None = None


@dataclass(slots=True, kw_only=True)
class Weights:
    """embed [V, d], positions [max_len, d] or None, head [V, d] (the same tensor as embed when tied).

    probes: [P, d], of negative tokens, which belong to no checkpoint; None if there are none.

    Of a slice of a model (`slices`): what it has of them, and empty tensors for what it lacks.
    """

    embed: Tensor
    positions: Tensor | None = None
    layers: list[Layer]
    norm: Tensor
    norm_bias: Tensor | None = None
    head: Tensor
    probes: Tensor | None = None

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor once."""
        seen: set[int] = set()
        values = [getattr(self, f.name) for f in fields(self)]
        values += [getattr(layer, f.name) for layer in self.layers for f in fields(layer)]
        for value in values:
            if isinstance(value, Tensor) and id(value) not in seen:
                seen.add(id(value))
                yield value

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors())


def from_checkpoint(spec: ModelSpec, get: Get) -> Weights:
    """Put a model's weights together from its checkpoint's tensors."""
    layers: list[dict[str, Tensor]] = [{} for _ in range(spec.num_layers)]
    others: dict[str, Tensor] = {}
    for part in each_part(spec):
        tied = part.name == "head" and spec.tied
        whole = others["embed"] if tied else joined(spec, part, get)
        (others if part.layer < 0 else layers[part.layer])[part.name] = whole
    return Weights(layers=[Layer(**parts) for parts in layers], **others)


def joined(spec: ModelSpec, part: Part, get: Get, cut: Cut = lambda name, tensor: tensor) -> Tensor:
    """A weight of its tensors, or of what is cut from each."""
    tensors = [get(name, shape) for name, shape in part.tensors]
    if part.transposed:
        tensors = [tensor.T.contiguous() for tensor in tensors]
    tensors = [cut(part.name, tensor) for tensor in tensors]
    whole = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
    of_experts = part.layer in spec.moe and part.name in ("up", "down")
    return whole.view(spec.num_experts, -1, whole.shape[1]) if of_experts else whole


def to_checkpoint(weights: Weights, spec: ModelSpec) -> dict[str, Tensor]:
    """The tensors of a dense Llama-like model under their Hugging Face names.

    Raises CheckpointError for families that this project does not train.
    """
    if spec.family == "gpt2" or spec.moe:
        raise CheckpointError(f"{spec.family} models cannot be written", expected="a dense Llama-like model")
    state = {"model.embed_tokens.weight": weights.embed, "model.norm.weight": weights.norm}
    if not spec.tied:
        state["lm_head.weight"] = weights.head
    size, kv = spec.head_size, spec.num_kv_heads * spec.head_size
    for i, layer in enumerate(weights.layers):
        at = f"model.layers.{i}."
        state |= _split(layer.qkv, f"{at}self_attn.", "qkv", [spec.num_heads * size, kv, kv], "weight")
        if layer.qkv_bias is not None:
            state |= _split(layer.qkv_bias, f"{at}self_attn.", "qkv", [spec.num_heads * size, kv, kv], "bias")
        gate, up = layer.up.chunk(2)
        state |= {f"{at}mlp.gate_proj.weight": gate, f"{at}mlp.up_proj.weight": up}
        state |= {f"{at}mlp.down_proj.weight": layer.down, f"{at}self_attn.o_proj.weight": layer.out}
        state |= {
            f"{at}input_layernorm.weight": layer.norm1,
            f"{at}post_attention_layernorm.weight": layer.norm2,
        }
        if layer.out_bias is not None:
            state[f"{at}self_attn.o_proj.bias"] = layer.out_bias
        if layer.q_norm is not None and layer.k_norm is not None:
            state |= {
                f"{at}self_attn.q_norm.weight": layer.q_norm,
                f"{at}self_attn.k_norm.weight": layer.k_norm,
            }
    return state


def _split(fused: Tensor, at: str, parts: str, sizes: list[int], kind: str) -> Mapping[str, Tensor]:
    return {f"{at}{p}_proj.{kind}": t for p, t in zip(parts, torch.split(fused, sizes), strict=True)}
