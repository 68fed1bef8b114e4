"""The shape of a GGUF file's model, and what its tensors are called in Hugging Face checkpoints.

llama.cpp rotates neighbours (2i, 2i + 1) of a head in models of the llama architecture, and files hold the
rows of Q and K in that order; this project rotates (i, i + D/2), as transformers does.

H heads  D head size
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import CheckpointError
from lightwork.models.gguf.container import Container
from lightwork.models.spec import ModelSpec, Rope

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
}
"""Mistral and Mixtral are llama here: the same layers, with experts."""

TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
}
EXPERT = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_EXPERT_NAME = re.compile(r"(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)")

ROPE_FACTORS = "rope_freqs.weight"
"""Float32 [D/2]: what each rotary frequency is divided by."""


def gguf_name(name: str) -> tuple[str, int | None]:
    """A tensor's name in GGUF, and which expert of it, from its Hugging Face name."""
    layer = _LAYER_NAME.fullmatch(name)
    if layer is None:
        stem, _, kind = name.rpartition(".")
        return f"{TOP.get(stem, stem)}.{kind}", None
    index, stem, kind = layer.groups()
    expert = _EXPERT_NAME.fullmatch(stem)
    if expert is not None:
        return f"blk.{index}.ffn_{EXPERT.get(expert[2], expert[2])}_exps.{kind}", int(expert[1])
    return f"blk.{index}.{LAYER.get(stem, stem)}.{kind}", None


def row_order(rows: int, head_size: int) -> NDArray[np.intp]:
    """For each row of Q or K as this project has it, the row of the file."""
    return np.arange(rows).reshape(-1, head_size // 2, 2).swapaxes(1, 2).ravel()


def spec_of(file: Container) -> ModelSpec:
    """The model's shape. Raises CheckpointError for what is not supported, missing or absurd."""
    arch = file.text("general.architecture")
    if arch not in ARCHITECTURES:
        raise CheckpointError(
            f"{file.path} holds a model of architecture {arch!r}, which is not supported",
            expected=", ".join(ARCHITECTURES),
            fix="another file",
        )
    if file.integer("split.count", 0) > 1:
        raise CheckpointError(
            f"{file.path} is one part of a model in several files",
            expected="a model in one file",
            fix="join the parts with `llama-gguf-split --merge`",
        )
    return ModelSpec.from_config(_config(file, arch), file.text("general.name", file.path.stem))


def _config(file: Container, arch: str) -> dict[str, Any]:
    """What the model's config.json would say."""
    embedding = file.tensors.get("token_embd.weight")
    layers, heads = file.integer(f"{arch}.block_count"), file.integer(f"{arch}.attention.head_count")
    hidden = file.integer(f"{arch}.embedding_length")
    experts = file.integer(f"{arch}.expert_count", 0)
    head_size = file.integer(f"{arch}.attention.key_length", hidden // max(1, heads))
    _check(file, embedding is not None, "it has no token_embd.weight")
    _check(file, 0 < layers <= len(file.tensors), f"{arch}.block_count is {layers}")
    _check(file, 0 < heads <= hidden and head_size > 0, f"{arch}.attention.head_count is {heads}")
    _check(file, head_size % 2 == 0, f"heads have {head_size} values")
    used = file.integer(f"{arch}.expert_used_count", 0)
    _check(file, (0 < used <= experts) if experts else not used, f"rows go to {used} of {experts} experts")
    _check(file, file.integer(f"{arch}.context_length") > 0, f"{arch}.context_length is 0")
    for key in ("attention.value_length", "rope.dimension_count"):
        value = file.integer(f"{arch}.{key}", head_size)
        _check(file, value == head_size, f"{arch}.{key} is {value} and heads have {head_size} values")
    assert embedding is not None
    mixtral = arch == "llama" and experts > 0
    width = file.integer(f"{arch}.feed_forward_length")
    return {
        "architectures": ["MixtralForCausalLM" if mixtral else ARCHITECTURES[arch]],
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": width,
        "moe_intermediate_size": file.integer(f"{arch}.expert_feed_forward_length", width),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": file.integer(f"{arch}.attention.head_count_kv", heads),
        "head_dim": head_size,
        "max_position_embeddings": file.integer(f"{arch}.context_length"),
        "rms_norm_eps": file.real(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5),
        "rope_parameters": _rope(file, arch, head_size),
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "num_local_experts": experts,
        "num_experts_per_tok": used,
        "norm_topk_prob": experts > 0,
        "sliding_window": file.integer(f"{arch}.attention.sliding_window", 0),
        "use_sliding_window": True,
    }


def _rope(file: Container, arch: str, head_size: int) -> dict[str, Any]:
    theta = file.real(f"{arch}.rope.freq_base", 10_000.0)
    kind = file.text(f"{arch}.rope.scaling.type", "none")
    factor = file.real(f"{arch}.rope.scaling.factor", 1.0)
    if ROPE_FACTORS in file.tensors:
        return _llama3(file, arch, head_size, theta)
    if kind == "none" or factor == 1.0:
        return {"rope_type": "default", "rope_theta": theta}
    return {"rope_type": kind, "rope_theta": theta, "factor": factor}


def _llama3(file: Container, arch: str, head_size: int, theta: float) -> dict[str, Any]:
    """The settings behind a table of factors: published models differ in the greatest one only."""
    place = file.tensors[ROPE_FACTORS]
    _check(file, place.shape == (head_size // 2,) and place.format.name == "F32", f"{ROPE_FACTORS} is odd")
    table = file.bytes_of(place).view("<f4")
    rope = Rope(
        theta=theta,
        kind="llama3",
        factor=float(table.max()),
        original_len=file.integer(f"{arch}.rope.scaling.original_context_length", Rope().original_len),
    )
    if not np.allclose(table, rope_factors(rope, head_size), rtol=1e-4):
        raise CheckpointError(
            f"{file.path} stretches its rotary positions in a way of its own ({ROPE_FACTORS})",
            expected="no such tensor, or the factors of Llama 3",
            fix="another file",
        )
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": rope.factor,
        "low_freq_factor": rope.low,
        "high_freq_factor": rope.high,
        "original_max_position_embeddings": rope.original_len,
    }


def rope_factors(rope: Rope, head_size: int) -> NDArray[np.float32]:
    """What Llama 3 divides each rotary frequency by, float32 [D/2]."""
    frequencies = rope.theta ** (-np.arange(0, head_size, 2) / head_size)
    turns = rope.original_len * frequencies / (2 * np.pi)
    ramp = np.clip((turns - rope.low) / (rope.high - rope.low), 0.0, 1.0)
    return (1 / (ramp + (1 - ramp) / rope.factor)).astype(np.float32)


def _check(file: Container, holds: bool, why: str) -> None:
    if not holds:
        raise CheckpointError(
            f"{file.path} describes no model that can be built: {why}",
            expected="the metadata that llama.cpp's converters write",
            fix="convert it again",
        )
