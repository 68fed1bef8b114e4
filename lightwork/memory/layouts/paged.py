"""Paged: any blank block will do, the one given back last first.

Paper:  "Efficient Memory Management for Large Language Model Serving with PagedAttention", 2023
Idea:   a table of blocks for each sequence, so that no memory is reserved for what it may become; which block
        is of no importance, so the one that is still in caches
Shapes: blank blocks -> one of them
Cost:   O(1)
Claims: fastswitch
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from lightwork.memory.layouts import STAYS, Gathering


class Stack:
    """Blank blocks, the last given back on top."""

    __slots__ = ("_blocks",)
    at_once = 1

    def __init__(self, num_blocks: int) -> None:
        self._blocks = list(range(num_blocks - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[int]:
        return iter(self._blocks)

    def take(self, after: int) -> int:
        return self._blocks.pop()

    def give(self, block: int) -> None:
        self._blocks.append(block)

    def gather(self) -> Gathering:
        return STAYS


@dataclass(frozen=True, slots=True, kw_only=True)
class Paged:
    """Blocks in no order."""

    max_seqs: ClassVar[int] = 0

    def blanks(self, num_blocks: int) -> Stack:
        return Stack(num_blocks)
