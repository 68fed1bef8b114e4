"""Which tensors of a checkpoint each weight is made of, by their Hugging Face names. Without torch.

d: hidden size. F: MLP width. E experts. V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lightwork.errors import CheckpointError
from lightwork.models.spec import ModelSpec

Named = tuple[str, tuple[int, ...]]
"""A tensor's name in a checkpoint and its expected shape."""
MATRICES = ("qkv", "out", "up", "down")
"""The products of a layer."""


class Part(NamedTuple):
    """A weight, and the tensors of a checkpoint that it is made of.

    layer: -1 outside of layers. name: its field in Layer or Weights. tensors: one below the other along the
    outputs, of one expert after the other. transposed: they are stored input-major.
    """

    layer: int
    name: str
    tensors: Iterable[Named]
    transposed: bool = False


def each_part(spec: ModelSpec) -> Iterator[Part]:
    """Every weight of a decoder, in the order of the forward pass. Raises CheckpointError for a model with an
    encoder: `seq2seq` names its weights."""
    if spec.encoder_layers:
        raise CheckpointError(
            f"{spec.name or spec.family} has an encoder, which this place cannot compute",
            expected="a decoder alone",
            fix="models.load_seq2seq, which computes it with torch",
        )
    d, v = spec.hidden_size, spec.vocab_size
    gpt2 = spec.family == "gpt2"
    embed = ("transformer.wte.weight" if gpt2 else "model.embed_tokens.weight", (v, d))
    yield Part(-1, "embed", [embed])
    if spec.position == "learned":
        yield Part(-1, "positions", [("transformer.wpe.weight", (spec.max_len, d))])
    for i in range(spec.num_layers):
        layer = _gpt2_layer(spec, f"transformer.h.{i}.") if gpt2 else _layer(spec, i, f"model.layers.{i}.")
        for name, tensors in layer.items():
            if tensors:
                yield Part(i, name, tensors, transposed=gpt2 and name in MATRICES)
    yield Part(-1, "norm", [("transformer.ln_f.weight" if gpt2 else "model.norm.weight", (d,))])
    if spec.norm == "layer":
        yield Part(-1, "norm_bias", [("transformer.ln_f.bias", (d,))])
    yield Part(-1, "head", [embed if spec.tied else ("lm_head.weight", (v, d))])


def _layer(spec: ModelSpec, i: int, at: str) -> dict[str, Iterable[Named]]:
    """The tensors of each weight; none of one that the model lacks."""
    d, size, attn = spec.hidden_size, spec.head_size, at + "self_attn."
    q, kv = spec.num_heads * size, spec.num_kv_heads * size
    widths = {"q": q, "k": kv, "v": kv}
    return {
        "norm1": [(at + "input_layernorm.weight", (d,))],
        "qkv": [(f"{attn}{p}_proj.weight", (n, d)) for p, n in widths.items()],
        "qkv_bias": [(f"{attn}{p}_proj.bias", (n,)) for p, n in widths.items() if spec.qkv_bias],
        "q_norm": [(attn + "q_norm.weight", (size,))] * spec.qk_norm,
        "k_norm": [(attn + "k_norm.weight", (size,))] * spec.qk_norm,
        "out": [(attn + "o_proj.weight", (d, q))],
        "out_bias": [(attn + "o_proj.bias", (d,))] * spec.out_bias,
        "norm2": [(at + "post_attention_layernorm.weight", (d,))],
        **(_experts(spec, at) if i in spec.moe else _mlp(spec, at)),
        "up_bias": [(f"{at}mlp.{p}_proj.bias", (spec.ffn_size,)) for p in ("gate", "up") if spec.mlp_bias],
        "down_bias": [(at + "mlp.down_proj.bias", (d,))] * spec.mlp_bias,
    }


def _mlp(spec: ModelSpec, at: str) -> dict[str, Iterable[Named]]:
    d, f = spec.hidden_size, spec.dense_ffn_size or spec.ffn_size
    return {
        "up": [(f"{at}mlp.{p}_proj.weight", (f, d)) for p in ("gate", "up")],
        "down": [(at + "mlp.down_proj.weight", (d, f))],
    }


def _experts(spec: ModelSpec, at: str) -> dict[str, Iterable[Named]]:
    d, f = spec.hidden_size, spec.ffn_size
    mixtral = spec.family == "mixtral"
    moe = at + ("block_sparse_moe." if mixtral else "mlp.")
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    experts = f"{moe}experts."
    # Lazily: a damaged file may speak of billions of experts, and has not even one.
    return {
        "up": ((f"{experts}{e}.{p}.weight", (f, d)) for e in range(spec.num_experts) for p in (gate, up)),
        "down": ((f"{experts}{e}.{down}.weight", (d, f)) for e in range(spec.num_experts)),
        "router": [(moe + "gate.weight", (spec.num_experts, d))],
    }


def _gpt2_layer(spec: ModelSpec, at: str) -> dict[str, Iterable[Named]]:
    """GPT-2 stores its projections input-major (Conv1D)."""
    d, f = spec.hidden_size, spec.ffn_size
    return {
        "norm1": [(at + "ln_1.weight", (d,))],
        "norm1_bias": [(at + "ln_1.bias", (d,))],
        "qkv": [(at + "attn.c_attn.weight", (d, 3 * d))],
        "qkv_bias": [(at + "attn.c_attn.bias", (3 * d,))],
        "out": [(at + "attn.c_proj.weight", (d, d))],
        "out_bias": [(at + "attn.c_proj.bias", (d,))],
        "norm2": [(at + "ln_2.weight", (d,))],
        "norm2_bias": [(at + "ln_2.bias", (d,))],
        "up": [(at + "mlp.c_fc.weight", (d, f))],
        "up_bias": [(at + "mlp.c_fc.bias", (f,))],
        "down": [(at + "mlp.c_proj.weight", (f, d))],
        "down_bias": [(at + "mlp.c_proj.bias", (d,))],
    }


class Module(NamedTuple):
    """A matrix of a layer that every row is multiplied with.

    path: its name in a checkpoint, without ".weight". product: the weight that it is a part of, one of
    MATRICES, from output `first` on.
    """

    layer: int
    path: str
    product: str
    first: int
    outputs: int
    inputs: int


def each_module(spec: ModelSpec) -> Iterator[Module]:
    """Every such matrix, in the order of the forward pass: those of experts are none."""
    for part in each_part(spec):
        of_experts = part.layer in spec.moe and part.name in ("up", "down")
        if part.layer < 0 or part.name not in MATRICES or of_experts:
            continue
        first = 0
        for name, shape in part.tensors:
            outputs, inputs = reversed(shape) if part.transposed else shape
            yield Module(part.layer, name.removesuffix(".weight"), part.name, first, outputs, inputs)
            first += outputs
