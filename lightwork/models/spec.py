"""The shape of a model: one description for all families, read from a Hugging Face config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import pi
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import CheckpointError
from lightwork.models.gptq import Packing
from lightwork.runtime.effects import DTYPE_BYTES

T = TypeVar("T")

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "GPT2LMHeadModel": "gpt2",
    "MixtralForCausalLM": "mixtral",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "MBartForConditionalGeneration": "mbart",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary position embedding (Su et al., "RoFormer", 2021), and how it is stretched to longer contexts.

    kind: "default"; "linear" (positions divided by factor); "llama3" (low frequencies divided by factor,
    high ones kept, a ramp between the two wavelengths original_len / low and original_len / high).
    """

    theta: float = 10_000.0
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original_len: int = 8192

    def frequencies(self, head_size: int) -> NDArray[np.float32]:
        """Radians per position of each rotated pair, [head_size / 2]."""
        exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
        plain: NDArray[np.float32] = (1 / np.float32(self.theta) ** exponents).astype(np.float32)
        if self.kind == "default":
            return plain
        if self.kind == "linear":
            return (plain / self.factor).astype(np.float32)
        turns = self.original_len * plain / np.float32(2 * pi)
        ramp: NDArray[np.float32] = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return (ramp * plain + (1 - ramp) * plain / self.factor).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """All that the forward pass, the KV cache and the cost model need to know of a model.

    ffn_size: width of a dense MLP, or of one expert. sliding_window: keys a row sees, itself included, in
    the layers of windowed; None sees all. num_experts: 0 is dense; moe: which layers have experts.
    encoder_layers: of the encoder in front of a decoder, as wide as that; 0: there is none. With one, max_len
    is of source and output together. embed_scale: what embeddings are multiplied with.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    ffn_size: int
    max_len: int
    name: str = ""
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    position: Literal["rotary", "learned"] = "rotary"
    rope: Rope = field(default_factory=Rope)
    activation: str = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    sliding_window: int | None = None
    windowed: frozenset[int] = frozenset()
    num_experts: int = 0
    experts_per_token: int = 0
    moe: frozenset[int] = frozenset()
    dense_ffn_size: int = 0
    normalise_gates: bool = True
    encoder_layers: int = 0
    embed_scale: float = 1.0

    @property
    def num_params(self) -> int:
        """Parameters, embeddings included; norms and biases left out (under 0.1 %)."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        decoder = self.num_layers * self.attention_params + self.mlp_params()
        if not self.encoder_layers:
            return decoder + embeddings
        encoder = decoder * self.encoder_layers // self.num_layers
        return encoder + decoder + self.num_layers * self.attention_params + embeddings

    @property
    def attention_params(self) -> int:
        """Of one layer's four projections."""
        return self.hidden_size * self.head_size * 2 * (self.num_heads + self.num_kv_heads)

    def mlp_params(self, experts: float | None = None) -> int:
        """Of all layers' MLPs. experts: count only this many experts per MoE layer."""
        per_row = self.hidden_size * (3 if self.gated else 2)
        dense = self.num_layers - len(self.moe)
        num = self.num_experts if experts is None else experts
        return int(
            per_row * (dense * (self.dense_ffn_size or self.ffn_size) + len(self.moe) * num * self.ffn_size)
        )

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes of keys and values of one token, all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_size * DTYPE_BYTES[dtype]

    def window(self, layer: int) -> int | None:
        return self.sliding_window if layer in self.windowed else None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str = "") -> ModelSpec:
        """Read config.json. Raises CheckpointError for what is not supported or missing, naming it."""
        names = config.get("architectures") or ["nothing"]
        family = ARCHITECTURES.get(str(names[0]))
        if family is None:
            raise CheckpointError(
                f"architecture {names[0]} is not supported",
                expected=", ".join(ARCHITECTURES),
                fix="another checkpoint",
            )
        Packing.of(config.get("quantization_config"))
        try:
            other = {"gpt2": _gpt2, "mbart": _mbart}.get(family)
            return other(config, name) if other else _llama_like(config, family, name)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise CheckpointError(
                f"config.json of this {family} model lacks or garbles {error}",
                expected="what transformers writes",
                fix="save the model again with save_pretrained",
            ) from error


def _llama_like(c: Mapping[str, Any], family: str, name: str) -> ModelSpec:
    heads, layers = int(c["num_attention_heads"]), int(c["num_hidden_layers"])
    window, windowed = _window(c, family, layers)
    experts = {
        "mixtral": int(c.get("num_local_experts", 0)),
        "qwen3_moe": int(c.get("num_experts") or c.get("num_local_experts") or 0),
    }.get(family, 0)
    sparse = _moe_layers(c, layers) if experts else frozenset()
    return ModelSpec(
        name=name,
        family=family,
        vocab_size=int(c["vocab_size"]),
        hidden_size=int(c["hidden_size"]),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=int(c.get("num_key_value_heads") or heads),
        head_size=int(c.get("head_dim") or int(c["hidden_size"]) // heads),
        ffn_size=int(c["moe_intermediate_size"] if family == "qwen3_moe" else c["intermediate_size"]),
        dense_ffn_size=int(c["intermediate_size"]),
        max_len=int(c["max_position_embeddings"]),
        norm_eps=float(c["rms_norm_eps"]),
        rope=_rope(c),
        activation=str(c.get("hidden_act", "silu")),
        qkv_bias=family == "qwen2" or bool(c.get("attention_bias", False)),
        out_bias=family != "qwen2" and bool(c.get("attention_bias", False)),
        mlp_bias=bool(c.get("mlp_bias", False)),
        qk_norm=family in ("qwen3", "qwen3_moe"),
        tied=bool(c.get("tie_word_embeddings", False)),
        sliding_window=window,
        windowed=windowed,
        num_experts=experts,
        experts_per_token=int(c.get("num_experts_per_tok", 0)) if experts else 0,
        moe=sparse,
        normalise_gates=family == "mixtral" or bool(c.get("norm_topk_prob", False)),
    )


def _gpt2(c: Mapping[str, Any], name: str) -> ModelSpec:
    hidden, heads = int(c["n_embd"]), int(c["n_head"])
    if c.get("scale_attn_by_inverse_layer_idx") or c.get("scale_attn_weights") is False:
        raise CheckpointError(
            "this GPT-2 scales attention by layer", expected="plain scaling", fix="another checkpoint"
        )
    return ModelSpec(
        name=name,
        family="gpt2",
        vocab_size=int(c["vocab_size"]),
        hidden_size=hidden,
        num_layers=int(c["n_layer"]),
        num_heads=heads,
        num_kv_heads=heads,
        head_size=hidden // heads,
        ffn_size=int(c.get("n_inner") or 4 * hidden),
        max_len=int(c["n_positions"]),
        norm="layer",
        norm_eps=float(c["layer_norm_epsilon"]),
        position="learned",
        activation=str(c.get("activation_function", "gelu_new")),
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=bool(c.get("tie_word_embeddings", True)),
    )


def _mbart(c: Mapping[str, Any], name: str) -> ModelSpec:
    hidden, heads, width = int(c["d_model"]), int(c["decoder_attention_heads"]), int(c["decoder_ffn_dim"])
    if (int(c["encoder_attention_heads"]), int(c["encoder_ffn_dim"])) != (heads, width):
        raise CheckpointError(
            "the encoder of this mBART has other widths than its decoder",
            expected="as many heads, and MLPs as wide",
            fix="another checkpoint",
        )
    return ModelSpec(
        name=name,
        family="mbart",
        vocab_size=int(c["vocab_size"]),
        hidden_size=hidden,
        num_layers=int(c["decoder_layers"]),
        encoder_layers=int(c["encoder_layers"]),
        num_heads=heads,
        num_kv_heads=heads,
        head_size=hidden // heads,
        ffn_size=width,
        max_len=int(c["max_position_embeddings"]),
        norm="layer",
        position="learned",
        activation=str(c.get("activation_function", "gelu")),
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=True,
        embed_scale=hidden**0.5 if c.get("scale_embedding") else 1.0,
    )


def _rope(c: Mapping[str, Any]) -> Rope:
    """Rotary settings as transformers 5 (rope_parameters) and 4 (rope_theta, rope_scaling) write them."""
    p: Mapping[str, Any] = c.get("rope_parameters") or c.get("rope_scaling") or {}
    if (p.get("partial_rotary_factor") or c.get("partial_rotary_factor") or 1.0) != 1.0:
        raise CheckpointError("only a part of each head is rotated", expected="partial_rotary_factor 1")
    theta = float(p.get("rope_theta") or c.get("rope_theta") or 10_000.0)
    kind = str(p.get("rope_type") or p.get("type") or "default")
    if kind == "default":
        return Rope(theta=theta)
    if kind == "linear":
        return Rope(theta=theta, kind="linear", factor=float(p["factor"]))
    if kind == "llama3":
        return Rope(
            theta=theta,
            kind="llama3",
            factor=float(p["factor"]),
            low=float(p["low_freq_factor"]),
            high=float(p["high_freq_factor"]),
            original_len=int(p["original_max_position_embeddings"]),
        )
    raise CheckpointError(
        f"rotary scaling {kind!r} is not supported",
        expected="default, linear or llama3",
        fix="another checkpoint",
    )


def _window(c: Mapping[str, Any], family: str, layers: int) -> tuple[int | None, frozenset[int]]:
    """The sliding window and the layers that have it."""
    window = c.get("sliding_window")
    if not window or (family.startswith("qwen") and not c.get("use_sliding_window", False)):
        return None, frozenset()
    types = c.get("layer_types")
    if types:
        return int(window), frozenset(i for i, t in enumerate(types) if t == "sliding_attention")
    first = int(c.get("max_window_layers", 0)) if family.startswith("qwen") else 0
    return int(window), frozenset(range(first, layers))


def _moe_layers(c: Mapping[str, Any], layers: int) -> frozenset[int]:
    step, dense = int(c.get("decoder_sparse_step", 1)), set(c.get("mlp_only_layers") or ())
    return frozenset(i for i in range(layers) if i not in dense and (i + 1) % step == 0)


def read_json(folder: Path, name: str, *, optional: bool = False) -> dict[str, Any]:
    """A JSON object of the folder; {} if it is optional and absent. Raises CheckpointError."""
    path = folder / name
    if not path.is_file():
        if optional:
            return {}
        raise CheckpointError(
            f"{folder} has no {name}", expected="a Hugging Face model folder", fix="check the path"
        )
    return _parsed(path, dict, "a JSON object")


def read_objects(folder: Path, name: str) -> list[dict[str, Any]]:
    """A JSON list of objects, of the folder. Raises CheckpointError."""
    value = _parsed(folder / name, list, "a JSON list of objects")
    if not all(isinstance(each, dict) for each in value):
        raise CheckpointError(f"{folder / name} holds more than objects", expected="a JSON list of objects")
    return value


def _parsed(path: Path, kind: type[T], expected: str) -> T:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not JSON: {error}", expected=expected, fix="copy it again"
        ) from error
    if not isinstance(value, kind):
        raise CheckpointError(
            f"{path} holds a {type(value).__name__}", expected=expected, fix="copy it again"
        )
    return value


def read_spec(folder: Path) -> ModelSpec:
    """The shape of the model in a folder or a GGUF file. Raises CheckpointError."""
    if folder.is_file():
        from lightwork.models.gguf.container import Container
        from lightwork.models.gguf.shape import spec_of

        return spec_of(Container(folder))
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no folder {folder}", expected="a Hugging Face model folder", fix="check the path"
        )
    return ModelSpec.from_config(read_json(folder, "config.json"), folder.name)
