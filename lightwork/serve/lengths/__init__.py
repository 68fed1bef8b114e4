"""The kind that says how long prompts and outputs are. One file per family of lengths."""

from __future__ import annotations

from typing import Protocol

import numpy as np

Lengths = list[tuple[int, int]]
"""Prompt and output tokens of each request."""


class Length(Protocol):
    """Lengths of any number of requests, the same for the same random stream."""

    def draw(self, rng: np.random.Generator, num: int) -> Lengths: ...


def bounded(prompts: np.ndarray, outputs: np.ndarray, max_len: int) -> Lengths:
    """Rounded, at least 1 each, and together at most max_len."""
    whole = [np.clip(np.rint(n), 1, 1 << 30).astype(int).tolist() for n in (prompts, outputs)]
    room = max(1, max_len - 1)
    return [
        (min(p, room), max(1, min(o, max_len - min(p, room))))
        for p, o in zip(whole[0], whole[1], strict=True)
    ]
