"""The three random Llama checkpoints that every engine gets, in Hugging Face layout, bfloat16.

Weights are normal with deviation 1/sqrt(inputs), so activations keep their size and greedy tokens differ. The
rows of the head below FIRST_WORD are zero: such a token never has the largest logit. So no engine
stops early, none needs an option for that, and every generated token is text that can be streamed at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

BYTES = 256
SPECIAL = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
FIRST_WORD = BYTES + len(SPECIAL) + 1
"""Ids below are bytes, special tokens and a pair of bytes; the others are words, which a model generates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a Llama. max_len: positions."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    vocab: int
    max_len: int = 4096

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes by the names that Hugging Face gives them."""
        kv = self.kv_heads * self.head_size
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for i in range(self.layers):
            block = f"model.layers.{i}."
            found |= {
                f"{block}input_layernorm.weight": (self.hidden,),
                f"{block}self_attn.q_proj.weight": (self.hidden, self.hidden),
                f"{block}self_attn.k_proj.weight": (kv, self.hidden),
                f"{block}self_attn.v_proj.weight": (kv, self.hidden),
                f"{block}self_attn.o_proj.weight": (self.hidden, self.hidden),
                f"{block}post_attention_layernorm.weight": (self.hidden,),
                f"{block}mlp.gate_proj.weight": (self.mlp, self.hidden),
                f"{block}mlp.up_proj.weight": (self.mlp, self.hidden),
                f"{block}mlp.down_proj.weight": (self.hidden, self.mlp),
            }
        return found | {"model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocab, self.hidden)}

    @property
    def step_weights(self) -> int:
        """Weights that one decode step reads: all matrices but the embedding, of which it reads a row."""
        shapes = self.tensors()
        return sum(s[0] * s[1] for n, s in shapes.items() if len(s) == 2 and "embed" not in n)

    @property
    def kv_per_token(self) -> int:
        """Numbers that one token leaves in the cache."""
        return 2 * self.layers * self.kv_heads * self.head_size


SHAPES = {
    "34M": Shape(layers=8, hidden=512, mlp=1536, heads=8, kv_heads=4, vocab=8192),
    "160M": Shape(layers=12, hidden=1024, mlp=3072, heads=16, kv_heads=4, vocab=8192),
    "1.1B": Shape(layers=22, hidden=2048, mlp=5632, heads=32, kv_heads=4, vocab=32000),
}


def write_checkpoint(folder: Path, shape: Shape, seed: int = 0) -> Path:
    """config.json, model.safetensors and a tokenizer; returns the folder, which is made once."""
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(folder, shape, seed)
    _write_tokenizer(folder, shape.vocab)
    (folder / "config.json").write_text(json.dumps(_config(shape), indent=1), encoding="utf-8")
    return folder


def _write_weights(folder: Path, shape: Shape, seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    draws = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, size in shape.tensors().items():
        if len(size) == 1:
            values = torch.ones(size)
        else:
            deviation = 1.0 if "embed" in name else size[1] ** -0.5
            values = torch.randn(size, generator=draws) * deviation
        if name == "lm_head.weight":
            values[:FIRST_WORD] = 0.0
        tensors[name] = values.to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Bytes, special tokens, then words that no text is split into: text of n ASCII letters is n tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pair = (alphabet[-2], alphabet[-1])  # one merge, of bytes that are not text: some readers want a merge
    words = ["".join(pair), *(f"Ġ{i}" for i in range(FIRST_WORD, vocab_size))]
    vocab = {token: i for i, token in enumerate([*alphabet, *SPECIAL, *words])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[pair]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    chat = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "</s>",
        "chat_template": chat,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_len,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": BYTES,
        "eos_token_id": BYTES + 1,
        "torch_dtype": "bfloat16",
    }
