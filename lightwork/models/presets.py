"""Shapes of well-known models, for simulations without their weights.

Source: their published config.json files.
"""

from __future__ import annotations

from lightwork._listing import nearest
from lightwork.errors import SpecError
from lightwork.models.spec import ModelSpec


def _llama(
    vocab: int,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    ffn: int,
    max_len: int,
    window: int | None = None,
) -> ModelSpec:
    return ModelSpec(
        family="mistral" if window else "llama",
        vocab_size=vocab,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=hidden // heads,
        ffn_size=ffn,
        max_len=max_len,
        sliding_window=window,
        windowed=frozenset(range(layers)) if window else frozenset(),
    )


def _opt(hidden: int, layers: int, heads: int) -> ModelSpec:
    """Also the shape of GPT-3 (Brown et al., 2020), but for its vocabulary of 50,257."""
    return ModelSpec(
        family="gpt2",
        vocab_size=50_272,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_size=hidden // heads,
        ffn_size=4 * hidden,
        max_len=2048,
        norm="layer",
        position="learned",
        activation="relu",
        gated=False,
        tied=True,
    )


PRESETS = {
    "mistral-7b": _llama(32_000, 4096, 32, 32, 8, 14_336, 32_768, window=4096),
    "llama-13b": _llama(32_000, 5120, 40, 40, 40, 13_824, 2048),
    "llama-33b": _llama(32_000, 6656, 60, 52, 52, 17_920, 2048),
    "llama-65b": _llama(32_000, 8192, 80, 64, 64, 22_016, 2048),
    "llama-2-7b": _llama(32_000, 4096, 32, 32, 32, 11_008, 4096),
    "llama-2-13b": _llama(32_000, 5120, 40, 40, 40, 13_824, 4096),
    "llama-2-70b": _llama(32_000, 8192, 80, 64, 8, 28_672, 4096),
    "llama-3-8b": _llama(128_256, 4096, 32, 32, 8, 14_336, 8192),
    "llama-3-70b": _llama(128_256, 8192, 80, 64, 8, 28_672, 8192),
    "llama-3.1-405b": _llama(128_256, 16_384, 126, 128, 8, 53_248, 131_072),
    "qwen2.5-14b": _llama(152_064, 5120, 48, 40, 8, 13_824, 32_768),
    "qwen2.5-32b": _llama(152_064, 5120, 64, 40, 8, 27_648, 32_768),
    "qwen1.5-32b": _llama(152_064, 5120, 64, 40, 8, 27_392, 32_768),
    "yi-34b": _llama(64_000, 7168, 60, 56, 8, 20_480, 200_000),
    "opt-13b": _opt(5120, 40, 40),
    "opt-66b": _opt(9216, 64, 72),
    # Counted as layers of this family: attention and MLP are computed side by side there.
    "gptj-6b": ModelSpec(
        family="llama",
        vocab_size=50_400,
        hidden_size=4096,
        num_layers=28,
        num_heads=16,
        num_kv_heads=16,
        head_size=256,
        ffn_size=16_384,
        max_len=2048,
        gated=False,
        activation="gelu",
    ),
    "opt-175b": _opt(12_288, 96, 96),
    # Falcon's MLP is not gated: two matrices. Trained on 2,048 positions, served on 8,192.
    "falcon-180b": ModelSpec(
        family="llama",
        vocab_size=65_024,
        hidden_size=14_848,
        num_layers=80,
        num_heads=232,
        num_kv_heads=8,
        head_size=64,
        ffn_size=59_392,
        max_len=8192,
        gated=False,
        activation="gelu",
    ),
    "mixtral-8x7b": ModelSpec(
        family="mixtral",
        vocab_size=32_000,
        hidden_size=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_size=128,
        ffn_size=14_336,
        max_len=32_768,
        num_experts=8,
        experts_per_token=2,
        moe=frozenset(range(32)),
    ),
    "qwen3-235b-a22b": ModelSpec(
        family="qwen3_moe",
        vocab_size=151_936,
        hidden_size=4096,
        num_layers=94,
        num_heads=64,
        num_kv_heads=4,
        head_size=128,
        ffn_size=1536,
        max_len=40_960,
        qk_norm=True,
        num_experts=128,
        experts_per_token=8,
        moe=frozenset(range(94)),
    ),
    # Counted as layers of this family: latent attention and the shared expert as heads with as many
    # parameters (231 million a layer), of which two are for keys and values, about as large as the latents.
    "deepseek-v3": ModelSpec(
        family="qwen3_moe",
        vocab_size=129_280,
        hidden_size=7168,
        num_layers=61,
        num_heads=124,
        num_kv_heads=2,
        head_size=128,
        ffn_size=2048,
        max_len=163_840,
        num_experts=256,
        experts_per_token=8,
        moe=frozenset(range(3, 61)),
        dense_ffn_size=18_432,
    ),
}


def preset(name: str) -> ModelSpec:
    """The shape of a well-known model by name. Raises SpecError."""
    if name not in PRESETS:
        near = nearest(name, PRESETS) or "llama-3-8b"
        raise SpecError(
            f"no model shape is called {name!r}", expected=", ".join(PRESETS), fix=f"shape:{near}"
        )
    return PRESETS[name]
