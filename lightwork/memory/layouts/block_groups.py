"""BlockGroups: a sequence's blocks are neighbours in memory, so that a few large copies move them.

Paper:  "FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware Large Language Model Serving",
        2024
Idea:   a sequence's next block is the one behind its last. One that begins takes the largest extent of blank
        blocks that nobody grows into; where there is none it leaves the first `size` of the largest to
        whoever does, or half of them, so under pressure what was left for growing is given away down to the
        last block
Shapes: blank extents -> one block
Cost:   O(1) to go on, O(extents) to begin
Claims: fastswitch
Differs: where all blocks are held or cached, an eighth of them at most is given up at once, so that texts
        find extents. What is reserved for a sequence is only left for it, so nothing has to be taken away
        from a victim
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from lightwork.errors import InvariantError, RangeError
from lightwork.memory.layouts import STAYS, Gathering


class Extents:
    """Maximal runs of blank blocks. by_size[k]: the starts of those of 2^(k-1) to 2^k - 1 blocks. tips: the
    last blocks of texts, which may grow."""

    __slots__ = ("_by_size", "_ends", "_lengths", "_num", "_size", "_tips", "at_once")

    def __init__(self, num_blocks: int, size: int) -> None:
        self.at_once = max(1, num_blocks // 8)
        self._size = size
        self._num = num_blocks
        self._lengths: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self._by_size: list[dict[int, None]] = [{} for _ in range(num_blocks.bit_length() + 1)]
        self._tips: set[int] = set()
        self._add(0, num_blocks)

    def __len__(self) -> int:
        return self._num

    def __iter__(self) -> Iterator[int]:
        return (start + i for start, length in self._lengths.items() for i in range(length))

    def take(self, after: int) -> int:
        self._num -= 1
        self._tips.discard(after)
        block = start = after + 1
        if after < 0 or start not in self._lengths:
            start, block = self._begin()
        length = self._lengths[start]
        self._remove(start, length)
        self._add(start, block - start)
        self._add(block + 1, start + length - block - 1)
        self._tips.add(block)
        return block

    def give(self, block: int) -> None:
        self._num += 1
        self._tips.discard(block)
        start, end = block, block + 1
        before = self._ends.get(block)
        if before is not None:
            self._remove(before, block - before)
            start = before
        behind = self._lengths.get(end, 0)
        if behind:
            self._remove(end, behind)
            end += behind
        self._add(start, end - start)

    def gather(self) -> Gathering:
        return STAYS

    def _begin(self) -> tuple[int, int]:
        """An extent and where in it a text begins: among the longest, those that nobody grows into first."""
        shared: tuple[int, int] | None = None
        for starts in reversed(self._by_size):
            for start in starts:
                if start - 1 not in self._tips:
                    own = self._lengths[start]
                    return (start, start) if shared is None or own >= self._left(*shared) else shared
                if shared is None:
                    shared = start, start + min(self._size, self._lengths[start] // 2)
        if shared is None:
            raise InvariantError("no blank KV block is left", expected="the pool to have evicted one")
        return shared

    def _left(self, start: int, begin: int) -> int:
        return start + self._lengths[start] - begin

    def _add(self, start: int, length: int) -> None:
        if length:
            self._lengths[start] = length
            self._ends[start + length] = start
            self._by_size[length.bit_length()][start] = None

    def _remove(self, start: int, length: int) -> None:
        del self._lengths[start], self._ends[start + length], self._by_size[length.bit_length()][start]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockGroups:
    """size: blocks that are left for a sequence to grow into, while there are so many."""

    size: int = 60
    max_seqs: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise RangeError(
                f"BlockGroups cannot leave size={self.size} blocks", expected="size >= 1", fix="BlockGroups()"
            )

    def blanks(self, num_blocks: int) -> Extents:
        return Extents(num_blocks, self.size)
