"""Which expert a prompt is for: a linear classifier over its n-grams, trained on prompts with labels.

An n-gram of one to three tokens is a number below FEATURES, a prompt the set of its numbers, at length 1. The
classifier is a softmax; who is not sure enough of any expert says "", the model they are served beside.
`train.prompt_router` trains one.

K experts  D features  N prompts
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightwork import home
from lightwork.errors import CheckpointError

FILE = "router.safetensors"
FEATURES = 4096
LONGEST = 3
FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
"""Odd numbers of many bits, one per token of an n-gram; the product's upper bits are well mixed."""


def features(tokens: Sequence[int]) -> NDArray[np.float32]:
    """Of one prompt: float32 [D], of length 1."""
    ids = np.array(tokens, np.uint64) + np.uint64(1)
    found = np.zeros(FEATURES, np.float32)
    with np.errstate(over="ignore"):
        for n in range(1, LONGEST + 1):
            length = max(0, len(ids) - n + 1)
            mixed = sum((ids[i : i + length] * FACTORS[i] for i in range(n)), np.zeros(length, np.uint64))
            mixed = (mixed ^ (mixed >> np.uint64(29))) * FACTORS[n - 1]
            found[(mixed >> np.uint64(64 - 12)).astype(np.int64)] = 1.0
    return found / max(1.0, float(np.linalg.norm(found)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptRouter:
    """weights [K, D], bias [K]: float32. least: the probability from which an expert is chosen."""

    names: tuple[str, ...]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    least: float

    def route(self, tokens: Sequence[int]) -> str:
        """The expert's name, or "" """
        chances = self.chances(features(tokens))
        best = int(chances.argmax())
        return self.names[best] if chances[best] >= self.least else ""

    def chances(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of each expert: for features [D] or [N, D]."""
        scores = features @ self.weights.T + self.bias
        powers = np.exp(scores - scores.max(-1, keepdims=True))
        chances: NDArray[np.float32] = powers / powers.sum(-1, keepdims=True)
        return chances

    def save(self, folder: Path) -> None:
        """Beside the experts' folders. Raises LightworkError if there is no room."""
        from safetensors.numpy import save as in_bytes

        told = {"names": json.dumps(self.names), "least": repr(self.least)}
        stored = in_bytes({"weights": self.weights, "bias": self.bias}, metadata=told)
        home.save(folder / FILE, lambda part: part.write_bytes(stored))


def read_router(folder: Path) -> PromptRouter | None:
    """That of a folder of experts, if there is one. Raises CheckpointError for a damaged one, and for one
    that names an expert that is not there."""
    from safetensors import SafetensorError, safe_open

    if not (folder / FILE).is_file():
        return None
    try:
        with safe_open(folder / FILE, framework="np") as file:
            told = file.metadata() or {}
            names = tuple(map(str, json.loads(told["names"])))
            weights, bias = file.get_tensor("weights"), file.get_tensor("bias")
            least = float(told["least"])
        if weights.shape != (len(names), FEATURES) or bias.shape != (len(names),):
            raise ValueError(f"weights of shape {weights.shape} for {len(names)} experts")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / FILE} is no router: {error}",
            expected="what PromptRouter.save wrote",
            fix="train it again",
        ) from error
    if lacking := [name for name in names if not (folder / name / "config.json").is_file()]:
        raise CheckpointError(
            f"{folder / FILE} names the expert {lacking[0]!r}, which is not in {folder}",
            expected="experts of this folder",
            fix="train it again",
        )
    return PromptRouter(names=names, weights=weights, bias=bias, least=least)
