"""HostMemory: sequences that are preempted leave their KV in host memory and go on from there.

Paper:  "FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware Large Language Model
        Serving", 2024
Idea:   when a sequence gives up its blocks, those that host memory does not hold yet are copied there,
        neighbours as one, while steps go on; only a step that would write a block still being copied waits
        for it. Back likewise: a sequence joins when its blocks are there. The copy stays valid, so the next
        switch or turn adds what is new; where host memory is short the oldest goes, and what is left of a
        text still saves its computation
Shapes: blocks of a text -> blocks of host memory
Cost:   one look-up per block of an admitted text; copies as long as the link takes
Claims: fastswitch, distserve
Differs: whole blocks, found by their tokens; the tokens behind the last are computed again, unless parts=True
        copies them as well. Copies are not kept for an owner: the least recently used go first
"""

from __future__ import annotations

from dataclasses import dataclass

from lightwork.errors import CapacityError, RangeError


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """gb: of host memory, 10^9 bytes. merge=False copies block by block; overlap=False lets steps wait for
    copies; reuse=False drops what was fetched: each part of the publication, to be left out. parts: nothing
    is computed again, at the price of a block more at each switch, and of waiting for a copy to be there."""

    gb: float = 4.0
    merge: bool = True
    overlap: bool = True
    reuse: bool = True
    parts: bool = False

    def __post_init__(self) -> None:
        if not self.gb > 0:
            raise RangeError(f"HostMemory of gb={self.gb}", expected="gb > 0", fix="HostMemory(gb=4)")

    def num_blocks(self, block_bytes: int) -> int:
        blocks = int(self.gb * 1e9 // block_bytes)
        if blocks < 1:
            raise CapacityError(
                f"HostMemory(gb={self.gb}) holds no KV block",
                expected=f"at least {block_bytes / 1e9:.3g} GB",
                fix="raise gb",
            )
        return blocks
