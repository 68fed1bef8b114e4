"""What tests of this project, and of techniques written elsewhere, share.

Tiny random checkpoints of every family, and the logits of one text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lightwork.models import Model
    from lightwork.models.adapters import Adapter
    from lightwork.models.spec import ModelSpec

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "mixtral", "qwen3_moe")

CHAT_TEMPLATE = (
    "{% if tools %}<|system|>{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|end|>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_checkpoint(folder: Path, family: str = "llama", seed: int = 0, **config: Any) -> Path:
    """Write a random checkpoint of one family with transformers, and a byte-level tokenizer; returns the
    folder.

    config overrides fields of the family's configuration.
    """
    import torch
    import transformers

    shape = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 256,
        "eos_token_id": 257,
    }
    special: dict[str, dict[str, Any]] = {
        "mistral": {"sliding_window": 24},
        "qwen2": {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
        "qwen3": {"head_dim": 12},
        "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
        "qwen3_moe": {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "head_dim": 12,
        },
    }
    if family == "gpt2":
        shape = {"vocab_size": 320, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}
    stem = {"gpt2": "GPT2", "qwen3_moe": "Qwen3Moe"}.get(family, family.capitalize())
    settings = shape | special.get(family, {}) | config
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = getattr(transformers, f"{stem}Config")(**settings)
        head = "GPT2LMHeadModel" if family == "gpt2" else f"{stem}ForCausalLM"
        model = getattr(transformers, head)(made)
        for parameter in model.parameters():
            # transformers starts all weights small and all norms at one, which would hide mistakes in either.
            torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of 256 bytes and a few special tokens, with a chat template."""
    import json

    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(t) for t in ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def text_logits(model: Model, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Logits after each token of one text, run as one step: float32 [tokens, V]."""
    from lightwork.kernels.rows import Rows

    length = len(tokens)
    rows = Rows.of_text(np.array(tokens, np.int64), length)
    logits: NDArray[np.float32] = model.forward(rows, model.new_kv(1, length)).numpy()
    return logits


def random_adapter(
    spec: ModelSpec, name: str, seed: int = 0, *, rank: int = 4, scale: float = 0.5, only: str = ""
) -> Adapter:
    """An adapter of random numbers, of all matrices whose path holds `only`: it changes what they compute."""
    from lightwork.models.adapters import Adapter, Delta
    from lightwork.models.parts import each_module

    rng = np.random.default_rng(seed)

    def numbers(*shape: int) -> NDArray[np.float32]:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    deltas = {
        module.path: Delta(a=numbers(rank, module.inputs), b=numbers(module.outputs, rank), scale=scale)
        for module in each_module(spec)
        if only in module.path
    }
    return Adapter(name=name, deltas=deltas)


@contextmanager
def tensors_read() -> Iterator[set[int]]:
    """The addresses of all tensors that torch's operations are given inside."""
    from torch import Tensor
    from torch.utils import _pytree
    from torch.utils._python_dispatch import TorchDispatchMode

    read: set[int] = set()

    class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given, _ = _pytree.tree_flatten((args, kwargs))
            read.update(x.data_ptr() for x in given if isinstance(x, Tensor))
            return func(*args, **(kwargs or {}))

    with Reads():  # type: ignore[no-untyped-call]
        yield read
