"""A trained model as a folder in Hugging Face layout, which transformers loads unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from lightwork.errors import CheckpointError
from lightwork.home import save
from lightwork.models.checkpoint import write_tensors
from lightwork.models.spec import ModelSpec
from lightwork.models.weights import Weights, to_checkpoint
from lightwork.train.vocabulary import BOS, END, save_tokenizer


def save_model(
    folder: Path, weights: Weights, spec: ModelSpec, tokenizer: Tokenizer, dtype: torch.dtype = torch.float16
) -> None:
    """Write config.json, generation_config.json, model.safetensors and the tokenizer's files.

    dtype: of the stored weights. Raises CheckpointError for families that cannot be written, LightworkError
    if there is no room.
    """
    config = hf_config(spec, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    ends = {"bos_token_id": tokenizer.token_to_id(BOS), "eos_token_id": tokenizer.token_to_id(END)}
    ends["pad_token_id"] = ends["eos_token_id"]
    write_json(folder / "config.json", config | ends)
    write_json(folder / "generation_config.json", {"do_sample": False, **ends})
    state = {k: v.detach().to(dtype).contiguous().clone() for k, v in to_checkpoint(weights, spec).items()}
    write_tensors(folder / "model.safetensors", state)
    save_tokenizer(tokenizer, folder, spec.max_len)


def hf_config(spec: ModelSpec, dtype: torch.dtype) -> dict[str, Any]:
    """config.json of a dense Llama, or of a Qwen3 of experts. Raises CheckpointError for other families."""
    if spec.family not in ("llama", "qwen3_moe"):
        raise CheckpointError(f"{spec.family} models cannot be written", expected="llama or qwen3_moe")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.dense_ffn_size or spec.ffn_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_size,
        "max_position_embeddings": spec.max_len,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope.theta,
        "hidden_act": spec.activation,
        "attention_bias": spec.qkv_bias,
        "mlp_bias": spec.mlp_bias,
        "tie_word_embeddings": spec.tied,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    return config | _of_experts(spec) if spec.moe else config


def _of_experts(spec: ModelSpec) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": spec.ffn_size,
        "num_experts": spec.num_experts,
        "num_experts_per_tok": spec.experts_per_token,
        "norm_topk_prob": spec.normalise_gates,
        "decoder_sparse_step": 1,
        "mlp_only_layers": sorted({*range(spec.num_layers)} - spec.moe),
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Raises LightworkError if there is no room, or no way to write; what was there stays then."""
    save(path, lambda part: part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))
