"""Slots: each sequence has one contiguous stretch of memory, and those of the living lie side by side.

Paper:  "Flover: A Temporal Fusion Framework for Efficient Autoregressive Model Parallel Inference", 2023
Idea:   memory is divided among `max_seqs` sequences, once. When some have ended, the window of as many slots
        as live that holds most of the living is found, and each outside of it is moved into a hole inside: no
        contiguous arrangement takes fewer moves. Memory outside the window is given back to the system
Shapes: which slots are in use -> [(from, to)]
Cost:   O(slots) to begin and to gather; a short text holds as many blocks as a long one
Claims: flover
Differs: a text that begins takes a hole, or the slot beside the window, so there is less to move. No prefix
        is shared, since a block lies in one slot. Nothing is gathered while copies or other steps are in
        flight. A GPU keeps its memory
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lightwork.errors import CapacityError, InvariantError, RangeError
from lightwork.memory.layouts import STAYS, Gathering


def reorder(live: Sequence[bool]) -> list[tuple[int, int]]:
    """The fewest moves (from, to) after which the live slots are neighbours; none if they are.

    Of several windows that hold as many, the first.
    """
    num = sum(live)
    held = best = sum(live[:num])
    start = 0
    for end in range(num, len(live)):
        held += live[end] - live[end - num]
        if held > best:
            best, start = held, end - num + 1
    window = range(start, start + num)
    holes = (slot for slot in window if not live[slot])
    outside = (slot for slot, lives in enumerate(live) if lives and slot not in window)
    return list(zip(outside, holes, strict=True))


class SlotBlanks:
    """size: blocks of a slot. held: how many of each are given out. used: slots whose memory may hold
    something. ended: whether any was given up since they were gathered."""

    __slots__ = ("_blank", "_ended", "_held", "_size", "_used")
    at_once = 1

    def __init__(self, num_slots: int, size: int) -> None:
        self._size = size
        self._blank = set(range(num_slots * size))
        self._held = [0] * num_slots
        self._used: set[int] = set()
        self._ended = False

    def __len__(self) -> int:
        return len(self._blank)

    def __iter__(self) -> Iterator[int]:
        return iter(self._blank)

    def take(self, after: int) -> int:
        block = after + 1
        if block % self._size == 0 or block not in self._blank:
            block = self._begin()
            self._used.add(block // self._size)
        self._blank.remove(block)
        self._held[block // self._size] += 1
        return block

    def give(self, block: int) -> None:
        self._blank.add(block)
        self._held[block // self._size] -= 1
        self._ended |= not self._held[block // self._size]

    def gather(self) -> Gathering:
        if not self._ended:
            return STAYS
        self._ended = False
        size, moves = self._size, []
        for src, dst in reorder([held > 0 for held in self._held]):
            held = [block for block in self._blocks(src) if block not in self._blank]
            self._blank.update(held)
            self._blank.difference_update(block + (dst - src) * size for block in held)
            self._held[src], self._held[dst] = 0, len(held)
            self._used.add(dst)
            moves.append((src * size, dst * size, size))
        left = sorted(slot for slot in self._used if not self._held[slot])
        self._used.difference_update(left)
        return Gathering(moves, [self._blocks(slot) for slot in left])

    def _blocks(self, slot: int) -> range:
        return range(slot * self._size, (slot + 1) * self._size)

    def _begin(self) -> int:
        """The first block of an empty slot: among the living, or beside them. If there is none, any block,
        as for texts whose beginnings others hold."""
        live = [slot for slot, held in enumerate(self._held) if held] or [0]
        empty = (slot for slot, held in enumerate(self._held) if not held)
        nearest = min(empty, key=lambda slot: max(live[0] - slot, slot - live[-1]), default=None)
        if nearest is not None:
            return nearest * self._size
        if not self._blank:
            raise InvariantError("no blank KV block is left", expected="the pool to have evicted one")
        return min(self._blank)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """max_seqs: slots; who finds none waits. Each holds what all memory has, over their number."""

    max_seqs: int = 32

    def __post_init__(self) -> None:
        if self.max_seqs < 1:
            raise RangeError(
                f"Slots cannot hold max_seqs={self.max_seqs}", expected="max_seqs >= 1", fix="Slots()"
            )

    def blanks(self, num_blocks: int) -> SlotBlanks:
        """Blocks that are left over are not used. Raises CapacityError for slots of no block."""
        if num_blocks < self.max_seqs:
            raise CapacityError(
                f"{num_blocks} KV blocks make no {self.max_seqs} slots",
                expected="a block for each slot, at least",
                fix="fewer slots, Slots(max_seqs=...), or more memory for keys and values",
            )
        return SlotBlanks(self.max_seqs, num_blocks // self.max_seqs)
