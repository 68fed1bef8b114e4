"""The kind of technique that keeps KV the blocks have no room for, in a larger and slower memory.

A tier is a cache of text: what it holds is found by the tokens, so it serves a sequence that was preempted,
the next turn of its conversation, and anybody who begins with the same prompt. Nothing depends on it: what
it has lost is computed again.
"""

from __future__ import annotations

from typing import Protocol


class Tier(Protocol):
    """How KV is moved to host memory and back.

    merge: neighbouring blocks are copied as one. overlap: steps go on while copies run. reuse: what was
    fetched stays, so only what is new is stored again. parts: a last block that is not full is copied, too.
    """

    @property
    def merge(self) -> bool: ...
    @property
    def overlap(self) -> bool: ...
    @property
    def reuse(self) -> bool: ...
    @property
    def parts(self) -> bool: ...

    def num_blocks(self, block_bytes: int) -> int:
        """Blocks it holds. Raises CapacityError if that is none."""
        ...
