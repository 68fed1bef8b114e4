"""The kind of technique that decides where in memory a sequence's next KV block lies.

Tables are of blocks whatever the layout, so attention does not know; what a layout changes is how many
copies it takes to move a sequence's blocks, since neighbours are copied as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class Blanks(Protocol):
    """The blocks that nobody holds and that hold nothing. `len` of it: how many. at_once: cached blocks given
    up together when there are none."""

    @property
    def at_once(self) -> int: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[int]: ...

    def take(self, after: int) -> int:
        """Give out a block, for a sequence whose last one is `after` (-1: its first). There must be one."""
        ...

    def give(self, block: int) -> None:
        """Take a block back."""
        ...


class Layout(Protocol):
    """How blocks are given out."""

    def blanks(self, num_blocks: int) -> Blanks:
        """The state of a new pool, all of whose blocks are blank."""
        ...
