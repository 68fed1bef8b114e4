"""The kind of technique that decides where in memory a sequence's next KV block lies.

Tables are of blocks whatever the layout, so attention does not know; what a layout changes is how many
copies it takes to move a sequence's blocks, since neighbours are copied as one, and what memory is in use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol


class Gathering(NamedTuple):
    """What brings together the blocks that are held.

    moves: the blocks of a text, as (src, dst, how many). left: blocks that hold nothing any more, whose
    memory may be given back.
    """

    moves: Sequence[tuple[int, int, int]]
    left: Sequence[range]


STAYS = Gathering((), ())


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

    def gather(self) -> Gathering:
        """Move what is held, if that is worth it; the blanks are those afterwards."""
        ...


class Layout(Protocol):
    """How blocks are given out.

    max_seqs: sequences for which all blocks are divided, each taking its part when it begins; 0: blocks are
    taken as texts grow.
    """

    @property
    def max_seqs(self) -> int: ...

    def blanks(self, num_blocks: int) -> Blanks:
        """The state of a new pool, all of whose blocks are blank."""
        ...
