"""Prompt tokens of a model on disk: embeddings that ask for its next tokens but one, and what came of it.

One safetensors file of one tensor, `embeddings`, float32 [P, d], and in its header how often the guesses of
each prompt were right: `accuracy`, JSON, [m, R] by rank. The i-th prompt behind a token guesses the i-th
after the next. It is v = P / m virtual tokens, whose logits are averaged; its j-th sees the j-th of the
prompts before it and none of the others. The first prompt's come first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lightwork.errors import CheckpointError, InvariantError
from lightwork.home import save
from lightwork.models.spec import ModelSpec

FILE = "prompt_tokens.safetensors"
"""Beside a model's weights."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptTokens:
    """embeddings: float32 [m v, d]. accuracy: [m, R], probability that the r-th most likely token of the i-th
    list is right, if those of the lists before it were found; falling by rank.
    """

    embeddings_Pd: NDArray[np.float32]
    accuracy_mR: NDArray[np.float64]

    @property
    def virtual(self) -> int:
        """Tokens of each prompt."""
        return len(self.embeddings_Pd) // len(self.accuracy_mR)


def as_probes(embeddings_Pd: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.float32]:
    """Contiguous float32. Raises InvariantError unless they are of the model's width."""
    if embeddings_Pd.ndim != 2 or embeddings_Pd.shape[1] != spec.hidden_size:
        raise InvariantError(f"probes of {embeddings_Pd.shape}", expected=f"[P, {spec.hidden_size}]")
    return np.ascontiguousarray(embeddings_Pd, np.float32)


def write_prompt_tokens(file: Path, tokens: PromptTokens) -> None:
    """Raises LightworkError if there is no room."""
    told = {"accuracy": json.dumps(np.round(tokens.accuracy_mR, 6).tolist())}
    save(file, lambda part: save_file({"embeddings": tokens.embeddings_Pd}, part, metadata=told))


def read_prompt_tokens(file: Path, spec: ModelSpec) -> PromptTokens:
    """Those of a model of this shape. Raises CheckpointError for a file that holds none."""
    try:
        with safe_open(file, framework="np") as stored:
            embeddings = stored.get_tensor("embeddings")
            accuracy = np.array(json.loads(stored.metadata()["accuracy"]), float)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} holds no prompt tokens: {error}",
            expected="what scripts/train_prompts.py wrote for this model",
            fix="train them, or PPD(prompts=FILE)",
        ) from error
    num, wide = embeddings.shape if embeddings.ndim == 2 else (0, 0)
    fits = embeddings.dtype == np.float32 and wide == spec.hidden_size and bool(np.isfinite(embeddings).all())
    ranked = accuracy.ndim == 2 and len(accuracy) > 0 and 0 < accuracy.shape[1] <= spec.vocab_size
    if not (fits and num and ranked and num % len(accuracy) == 0 and _are_accuracies(accuracy)):
        raise CheckpointError(
            f"{file} holds prompt tokens {embeddings.dtype} {embeddings.shape}, right {accuracy.tolist()}",
            expected=f"float32 [m v, {spec.hidden_size}], and [m, ranks] probabilities that fall by rank",
            fix="train them for this model",
        )
    return PromptTokens(embeddings, accuracy)


def _are_accuracies(accuracy_mR: NDArray[np.float64]) -> bool:
    falls = (np.diff(accuracy_mR, axis=1) <= 0.0).all()
    return bool(falls and (accuracy_mR >= 0.0).all() and (accuracy_mR.sum(1) <= 1.0 + 1e-6).all())
