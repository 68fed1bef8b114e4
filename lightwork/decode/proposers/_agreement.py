"""How far two texts are the same."""

from __future__ import annotations

from collections.abc import Sequence


def agreement(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens at the beginning in which two texts agree."""
    num = min(len(one), len(other))
    if one[:num] == other[:num]:
        return num
    return next(i for i in range(num) if one[i] != other[i])
