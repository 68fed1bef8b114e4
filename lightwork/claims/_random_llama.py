"""The model on which real claims about serving are measured: large enough that bookkeeping does not count."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

from lightwork.home import home
from lightwork.models.spec import ModelSpec

SPEC = ModelSpec(
    family="llama",
    vocab_size=2048,
    hidden_size=1024,
    num_layers=16,
    num_heads=16,
    num_kv_heads=4,
    head_size=64,
    ffn_size=2816,
    max_len=8192,
)
"""184 million parameters."""


def random_llama(seed: int = 0) -> str:
    """A Llama of random weights in bfloat16, as a folder that is written once."""
    name = f"random-llama-184m{f'-{seed}' if seed else ''}"
    return str(written_once(name, lambda part: _write(part, seed)))


def written_once(name: str, write: Callable[[Path], object]) -> Path:
    """A folder of the claims, filled when it is first asked for."""
    folder = home() / "claims" / name
    if not folder.is_dir():
        part = folder.with_suffix(f".{os.getpid()}.part")
        try:
            write(part)
            part.rename(folder)
        finally:
            rmtree(part, ignore_errors=True)
    return folder


def _write(folder: Path, seed: int) -> None:
    import torch

    from lightwork.train.export import save_model
    from lightwork.train.initial import initial_weights
    from lightwork.train.vocabulary import build_tokenizer

    save_model(folder, initial_weights(SPEC, seed=seed), SPEC, build_tokenizer([], []), torch.bfloat16)
