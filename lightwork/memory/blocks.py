"""Reference-counted KV blocks, and the order in which cached ones are given up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from lightwork.errors import InvariantError, RangeError
from lightwork.memory.layouts import Gathering, Layout
from lightwork.memory.layouts.paged import Paged


class BlockPool:
    """A fixed number of blocks; each is blank, held by sequences, or cached (held by nobody, content still
    wanted).

    `free` counts blank and cached blocks: a cached block is given up, oldest first, when no blank one is
    left, as many at once as the layout says.
    """

    __slots__ = ("_blank", "_cached", "_references", "num_blocks", "on_evict")

    def __init__(
        self, num_blocks: int, on_evict: Callable[[int], None], layout: Layout | None = None
    ) -> None:
        if num_blocks < 1:
            raise RangeError(
                f"a pool of {num_blocks} KV blocks", expected="at least 1", fix="give the cache more memory"
            )
        self.on_evict = on_evict
        self._blank = (layout or Paged()).blanks(num_blocks)
        self.num_blocks = len(self._blank)
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._references = [0] * self.num_blocks

    @property
    def free(self) -> int:
        return len(self._blank) + len(self._cached)

    def references(self, block: int) -> int:
        return self._references[block]

    def take(self, after: int = -1) -> int:
        """A blank block held once, for a text whose last block is `after`.

        Where none is blank, the oldest cached ones are given up.
        """
        if not self._blank:
            if not self._cached:
                raise InvariantError("no KV block is left", expected="reserve() to have refused")
            for _ in range(min(self._blank.at_once, len(self._cached))):
                self.forget(next(iter(self._cached)))
        block = self._blank.take(after)
        self._references[block] = 1
        return block

    def forget(self, block: int) -> None:
        """A cached block becomes blank."""
        del self._cached[block]
        self.on_evict(block)
        self._blank.give(block)

    def hold(self, block: int) -> None:
        """One more holder; revives a cached block."""
        if self._references[block] == 0:
            del self._cached[block]
        self._references[block] += 1

    def drop(self, block: int, *, cache: bool) -> None:
        """One holder fewer; the last one leaves the block cached (newest) or blank."""
        if self._references[block] <= 0:
            raise InvariantError(f"KV block {block} was released twice", expected="one release per holder")
        self._references[block] -= 1
        if self._references[block] == 0:
            if cache:
                self._cached[block] = None
            else:
                self._blank.give(block)

    def gather(self) -> Gathering:
        """As the layout moves blocks, so do their holders."""
        gathering = self._blank.gather()
        for src, dst, num in gathering.moves:
            self._references[dst : dst + num] = self._references[src : src + num]
            self._references[src : src + num] = [0] * num
        return gathering

    def check(self, held: dict[int, int]) -> None:
        """Raise InvariantError unless `held` (block -> holders) and this pool agree on every block."""
        idle = set(self._blank) | self._cached.keys()
        if len(self._blank) + len(self._cached) != len(idle) or len(idle) + len(held) != self.num_blocks:
            raise InvariantError(f"{len(idle)} idle and {len(held)} held of {self.num_blocks} KV blocks")
        wrong = [b for b in range(self.num_blocks) if self._references[b] != held.get(b, 0)]
        if wrong:
            raise InvariantError(f"KV blocks {wrong[:8]} have the wrong number of holders")
