"""Host memory behind the KV blocks: which of its blocks holds which text, and what is being copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightwork.memory.blocks import BlockPool
from lightwork.memory.layouts import Layout
from lightwork.memory.prefix import ROOT, PrefixTree
from lightwork.memory.tiers import Tier

Run = tuple[int, int, int]
"""Copy blocks src, src + 1, ... to dst, dst + 1, ...: (src, dst, how many)."""


def runs(src: Sequence[int], dst: Sequence[int], *, merge: bool = True) -> list[Run]:
    """Copies of src[i] to dst[i], neighbours on both sides as one; merge=False: a copy each."""
    found: list[Run] = []
    for a, b in zip(src, dst, strict=True):
        if merge and found and found[-1][0] + found[-1][2] == a and found[-1][1] + found[-1][2] == b:
            found[-1] = (*found[-1][:2], found[-1][2] + 1)
        else:
            found.append((a, b, 1))
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Transfer:
    """Copies in flight: block src[i] to dst[i], as `runs`. held: blocks of host memory that stay meanwhile.

    tokens: the text from its start, as far as `held` holds it. root: in the tree.
    """

    src: Sequence[int]
    dst: Sequence[int]
    held: Sequence[int]
    tokens: Sequence[int]
    runs: Sequence[Run]
    root: int


class HostBlocks:
    """Blocks of text in host memory, found by their tokens; the least recently used are given up.

    What is being copied in is found when it has arrived, and what is being copied stays.
    """

    def __init__(self, num_blocks: int, block_size: int, tier: Tier, layout: Layout) -> None:
        self.tier = tier
        self.block_size = block_size
        self._tree = PrefixTree(block_size)
        self._pool = BlockPool(num_blocks, self._tree.forget, layout)

    @property
    def total(self) -> int:
        return self._pool.num_blocks

    def find(self, tokens: Sequence[int], limit: int, root: int = ROOT) -> list[int]:
        """The blocks that hold tokens[:limit], as far as there are any: whole ones, and one ending there."""
        return self._tree.covering(tokens, limit, root)

    def store(
        self, tokens: Sequence[int], blocks: Sequence[int], limit: int, root: int = ROOT
    ) -> Transfer | None:
        """Begin to copy the blocks of tokens[:limit] that are not here yet, as far as there is room."""
        held = self._hold(self.find(tokens, limit, root))
        known = len(held)
        for _ in blocks[known:]:
            if not self._pool.free:
                break
            held.append(self._pool.take(held[-1] if held else -1))
        if len(held) == known:
            self._drop(held)
            return None
        return self._transfer(blocks[known : len(held)], held[known:], held, tokens[:limit], root)

    def stored(self, transfer: Transfer, *, arrived: bool) -> None:
        """The copies have ended. What arrived is found from now on."""
        held = [*transfer.held]
        if arrived:
            size, parent = self.block_size, transfer.root
            for i, block in enumerate(held):
                edge = tuple(transfer.tokens[i * size : (i + 1) * size])
                parent = self._tree.publish(parent, edge, block)
                if parent != block:  # somebody else has stored the same text meanwhile
                    self._pool.hold(parent)
                    self._pool.drop(block, cache=False)
                    held[i] = parent
        self._drop(held)

    def fetch(
        self, tokens: Sequence[int], blocks: Sequence[int], known: int, limit: int, root: int = ROOT
    ) -> Transfer:
        """Begin to copy tokens[:limit] back into `blocks`, all but the first `known`."""
        held = self._hold(self.find(tokens, limit, root))
        return self._transfer(held[known:], blocks[known : len(held)], held, tokens[:limit], root)

    def fetched(self, transfer: Transfer) -> None:
        """The copies have ended."""
        self._drop(transfer.held)
        if not self.tier.reuse:
            for block in reversed(transfer.src):
                if not self._pool.references(block) and self._tree.is_leaf(block):
                    self._pool.forget(block)

    def check(self) -> None:
        """Raise InvariantError unless every block is blank or cached, as when nothing is being copied."""
        self._pool.check({})

    def _transfer(
        self, src: Sequence[int], dst: Sequence[int], held: Sequence[int], tokens: Sequence[int], root: int
    ) -> Transfer:
        copies = runs(src, dst, merge=self.tier.merge)
        text = tuple(tokens[: len(held) * self.block_size])
        return Transfer(src=src, dst=dst, held=held, tokens=text, runs=copies, root=root)

    def _hold(self, blocks: list[int]) -> list[int]:
        for block in blocks:
            self._pool.hold(block)
        return blocks

    def _drop(self, held: Sequence[int]) -> None:
        for block in reversed(held):
            self._pool.drop(block, cache=block in self._tree)
