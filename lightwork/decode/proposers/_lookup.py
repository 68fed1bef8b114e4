"""Where tokens stand in a text: searches of bytes, which are those of C."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

WIDTH = array("i").itemsize


def packed(tokens: Sequence[int]) -> bytes:
    """A text to be searched, or what is searched for."""
    return array("i", tokens).tobytes()


def first(text: bytes, wanted: bytes) -> int:
    """Index of the first occurrence of what stands in the text."""
    at = text.find(wanted)
    while at % WIDTH:
        at = text.find(wanted, at + 1)
    return at // WIDTH


def last(text: bytes, wanted: bytes, end: int) -> int:
    """Index of the latest occurrence that ends within the first `end` tokens, -1 if there is none."""
    stop = end * WIDTH
    while (at := text.rfind(wanted, 0, stop)) >= 0:
        if at % WIDTH == 0:
            return at // WIDTH
        stop = at + len(wanted) - 1
    return -1
