"""Weights as the forward pass wants them, and their names in Hugging Face checkpoints.

Projections that read the same input are fused: queries, keys and values; gate and up. A checkpoint's
tensors are looked up by name, checked for shape, and put together here; `to_checkpoint` takes them apart
again.

d: hidden size. H query heads, G key-value heads, D head size. F: MLP width. E experts. V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lightwork.errors import CheckpointError
from lightwork.models.spec import ModelSpec

Get = Callable[[str, tuple[int, ...]], Tensor]
"""(name, expected shape) -> the tensor; raises CheckpointError."""


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
    """embed [V, d], positions [max_len, d] or None, head [V, d] (the same tensor as embed when tied)."""

    embed: Tensor
    positions: Tensor | None = None
    layers: list[Layer]
    norm: Tensor
    norm_bias: Tensor | None = None
    head: Tensor

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
    for number, name, tensor in each_part(spec, get):
        (others if number < 0 else layers[number])[name] = tensor
    return Weights(layers=[Layer(**parts) for parts in layers], **others)


def each_part(spec: ModelSpec, get: Get) -> Iterator[tuple[int, str, Tensor]]:
    """Every weight as (layer, or -1; its name in Layer or Weights; tensor), one layer in memory at a time."""
    d, v = spec.hidden_size, spec.vocab_size
    gpt2 = spec.family == "gpt2"
    embed = get("transformer.wte.weight" if gpt2 else "model.embed_tokens.weight", (v, d))
    yield -1, "embed", embed
    if spec.position == "learned":
        yield -1, "positions", get("transformer.wpe.weight", (spec.max_len, d))
    for i in range(spec.num_layers):
        layer = (
            _gpt2_layer(spec, f"transformer.h.{i}.", get)
            if gpt2
            else _layer(spec, i, f"model.layers.{i}.", get)
        )
        for name in (f.name for f in fields(Layer)):
            if (tensor := getattr(layer, name)) is not None:
                yield i, name, tensor
    yield -1, "norm", get("transformer.ln_f.weight" if gpt2 else "model.norm.weight", (d,))
    if spec.norm == "layer":
        yield -1, "norm_bias", get("transformer.ln_f.bias", (d,))
    yield -1, "head", embed if spec.tied else get("lm_head.weight", (v, d))


def _layer(spec: ModelSpec, i: int, at: str, get: Get) -> Layer:
    d, size = spec.hidden_size, spec.head_size
    widths = {"q": spec.num_heads * size, "k": spec.num_kv_heads * size, "v": spec.num_kv_heads * size}
    attn = at + "self_attn."
    qkv = torch.cat([get(f"{attn}{p}_proj.weight", (n, d)) for p, n in widths.items()])
    bias = [get(f"{attn}{p}_proj.bias", (n,)) for p, n in widths.items()] if spec.qkv_bias else []
    router, up, down = _experts(spec, at, get) if i in spec.moe else (None, *_mlp(spec, at, get))
    return Layer(
        norm1=get(at + "input_layernorm.weight", (d,)),
        qkv=qkv,
        qkv_bias=torch.cat(bias) if bias else None,
        q_norm=get(attn + "q_norm.weight", (size,)) if spec.qk_norm else None,
        k_norm=get(attn + "k_norm.weight", (size,)) if spec.qk_norm else None,
        out=get(attn + "o_proj.weight", (d, widths["q"])),
        out_bias=get(attn + "o_proj.bias", (d,)) if spec.out_bias else None,
        norm2=get(at + "post_attention_layernorm.weight", (d,)),
        router=router,
        up=up,
        up_bias=_mlp_bias(spec, at, get),
        down=down,
        down_bias=get(at + "mlp.down_proj.bias", (d,)) if spec.mlp_bias else None,
    )


def _mlp(spec: ModelSpec, at: str, get: Get) -> tuple[Tensor, Tensor]:
    d, f = spec.hidden_size, spec.dense_ffn_size or spec.ffn_size
    up = torch.cat([get(f"{at}mlp.{p}_proj.weight", (f, d)) for p in ("gate", "up")])
    return up, get(at + "mlp.down_proj.weight", (d, f))


def _mlp_bias(spec: ModelSpec, at: str, get: Get) -> Tensor | None:
    if not spec.mlp_bias:
        return None
    return torch.cat([get(f"{at}mlp.{p}_proj.bias", (spec.ffn_size,)) for p in ("gate", "up")])


def _experts(spec: ModelSpec, at: str, get: Get) -> tuple[Tensor, Tensor, Tensor]:
    """Router [E, d], up [E, 2F, d], down [E, d, F]."""
    d, f = spec.hidden_size, spec.ffn_size
    mixtral = spec.family == "mixtral"
    moe = at + ("block_sparse_moe." if mixtral else "mlp.")
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    ups, downs = [], []
    for e in range(spec.num_experts):
        expert = f"{moe}experts.{e}."
        ups.append(torch.cat([get(f"{expert}{p}.weight", (f, d)) for p in (gate, up)]))
        downs.append(get(f"{expert}{down}.weight", (d, f)))
    return get(moe + "gate.weight", (spec.num_experts, d)), torch.stack(ups), torch.stack(downs)


def _gpt2_layer(spec: ModelSpec, at: str, get: Get) -> Layer:
    """GPT-2 stores its projections input-major (Conv1D), so they are transposed here."""
    d, f = spec.hidden_size, spec.ffn_size
    return Layer(
        norm1=get(at + "ln_1.weight", (d,)),
        norm1_bias=get(at + "ln_1.bias", (d,)),
        qkv=get(at + "attn.c_attn.weight", (d, 3 * d)).T.contiguous(),
        qkv_bias=get(at + "attn.c_attn.bias", (3 * d,)),
        out=get(at + "attn.c_proj.weight", (d, d)).T.contiguous(),
        out_bias=get(at + "attn.c_proj.bias", (d,)),
        norm2=get(at + "ln_2.weight", (d,)),
        norm2_bias=get(at + "ln_2.bias", (d,)),
        up=get(at + "mlp.c_fc.weight", (d, f)).T.contiguous(),
        up_bias=get(at + "mlp.c_fc.bias", (f,)),
        down=get(at + "mlp.c_proj.weight", (f, d)).T.contiguous(),
        down_bias=get(at + "mlp.c_proj.bias", (d,)),
    )


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
