"""How much KV memory the running sequences will need when they need most."""

from __future__ import annotations

import numpy as np


class Peak:
    """KV blocks at the predicted peak, if each sequence decodes to its end.

    A sequence of n tokens of its own holds n + t after t more steps, until its output ends. shared_tokens:
    held beside those, all the time.
    """

    def __init__(self, block_size: int, shared_tokens: int = 0) -> None:
        self._size = block_size
        self._shared = shared_tokens
        self._own: list[int] = []
        self._left: list[int] = []

    def __len__(self) -> int:
        return len(self._own)

    def add(self, own: int, left: int) -> None:
        """A sequence of so many tokens of its own, and output tokens to come."""
        self._own.append(own + self._size)  # the last block is not full
        self._left.append(left)

    def blocks_with(self, own: int, left: int) -> float:
        """The peak with one more."""
        lefts = np.array([*self._left, left])
        owns = np.array([*self._own, own + self._size])
        longest = np.argsort(-lefts, kind="stable")
        held = owns[longest].cumsum() + np.arange(1, len(owns) + 1) * lefts[longest]
        return float(held.max() + self._shared) / self._size
