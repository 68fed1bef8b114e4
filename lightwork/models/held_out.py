"""Text a model was not trained on, beside its weights, and how well the model predicts it.

A folder may hold `held_out.json`: {"texts": [{"tokens": [ids], "scored": [0 or 1, ...]}, ...]}; scored tokens
are those to be predicted from the ones before.

T tokens  V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import CheckpointError
from lightwork.kernels.cpu.formats import PAGE
from lightwork.kernels.rows import Rows
from lightwork.models.spec import read_json

FILE = "held_out.json"


@dataclass(frozen=True, slots=True)
class Text:
    """tokens int64 [T]; scored bool [T], the first of which is never scored."""

    tokens: NDArray[np.int64]
    scored: NDArray[np.bool_]


def read_held_out(folder: Path) -> list[Text]:
    """The texts of a folder, none if it has no such file. Raises CheckpointError for a damaged one."""
    texts = []
    for entry in read_json(folder, FILE, optional=True).get("texts", []) if folder.is_dir() else []:
        try:
            tokens, scored = np.array(entry["tokens"], np.int64), np.array(entry["scored"], bool)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder / FILE} is garbled: {error}", expected="tokens and scored", fix="delete it"
            ) from error
        if tokens.shape != scored.shape or tokens.ndim != 1 or not scored[1:].any():
            raise CheckpointError(
                f"{folder / FILE} holds {tokens.shape} tokens and {scored.shape} marks",
                expected="as many, at least one of them scored",
                fix="delete it",
            )
        texts.append(Text(tokens, scored))
    return texts


def perplexity(model: Any, texts: list[Text]) -> float:
    """exp of the mean negative log-likelihood of the scored tokens, in nats. model: `logits`, `new_kv`."""
    total, count = 0.0, 0
    for text in texts:
        logits_TV = _logits(model, text.tokens)[:-1].astype(np.float64)
        logits_TV -= logits_TV.max(-1, keepdims=True)
        at = np.flatnonzero(text.scored[1:])
        chosen = logits_TV[at, text.tokens[1:][at]]
        total -= float((chosen - np.log(np.exp(logits_TV[at]).sum(-1))).sum())
        count += len(at)
    return exp(total / count)


def _logits(model: Any, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Of every position of one text."""
    kv = model.new_kv(-(-len(tokens) // PAGE), PAGE)
    logits: NDArray[np.float32] = model.logits(Rows.of_text(tokens, PAGE), kv)
    return logits
