"""The tree of published blocks: text already computed is found by walking it from the root.

The idea is RadixAttention's ("SGLang: Efficient Execution of Structured Language Model Programs", 2023), at
the grain of whole blocks: a node is one full block, its edge the block's tokens, its parent the block
before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

ROOT = -1

_SIBLINGS_TRIED = 32
"""Children compared for a partial match, newest first: the root may have thousands."""


class Hit(NamedTuple):
    """A prefix found: its blocks, and the tokens they hold; the last block may match in part only."""

    blocks: list[int]
    num_tokens: int


NO_HIT = Hit([], 0)


class PrefixTree:
    """Which published block holds which tokens after which parent.

    Texts of different models lie below roots of their own, any negative number: what is the same text is not
    the same keys and values.

    A block's children are always given up before it: whoever holds a block holds its ancestors, and
    sequences let go of their last block first, so the oldest cached block is a leaf.
    """

    __slots__ = ("_blocks", "_children", "_edges", "block_size")

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._blocks: dict[tuple[int, tuple[int, ...]], int] = {}
        self._edges: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._children: dict[int, list[int]] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._edges

    def __len__(self) -> int:
        return len(self._edges)

    def publish(self, parent: int, tokens: tuple[int, ...], block: int) -> int:
        """Record that `block` holds `tokens` after `parent`; returns the block that already did, if any."""
        edge = (parent, tokens)
        known = self._blocks.get(edge)
        if known is not None:
            return known
        self._blocks[edge] = block
        self._edges[block] = edge
        self._children.setdefault(parent, []).append(block)
        return block

    def forget(self, block: int) -> None:
        """The block is being reused: nothing finds it any more."""
        edge = self._edges.pop(block)
        del self._blocks[edge]
        siblings = self._children[edge[0]]
        siblings.remove(block)
        if not siblings:
            del self._children[edge[0]]

    def is_leaf(self, block: int) -> bool:
        return block in self._edges and block not in self._children

    def whole(self, tokens: Sequence[int], limit: int, root: int = ROOT) -> list[int]:
        """The blocks of the longest published prefix of tokens[:limit], whole blocks only."""
        size = self.block_size
        blocks: list[int] = []
        parent = root
        for at in range(0, limit - size + 1, size):
            block = self._blocks.get((parent, tuple(tokens[at : at + size])))
            if block is None:
                break
            blocks.append(block)
            parent = block
        return blocks

    def covering(self, tokens: Sequence[int], limit: int, root: int = ROOT) -> list[int]:
        """The same, and the block that ends at the limit, if it was published though it is not full."""
        blocks = self.whole(tokens, limit, root)
        at = len(blocks) * self.block_size
        if limit - at >= self.block_size:
            return blocks
        part = self._blocks.get((blocks[-1] if blocks else root, tuple(tokens[at:limit])))
        return blocks if part is None else [*blocks, part]

    def find(self, tokens: Sequence[int], limit: int, root: int = ROOT) -> Hit:
        """The longest published prefix of tokens[:limit]; its last block may be shared in part."""
        size = self.block_size
        blocks = self.whole(tokens, limit, root)
        parent, at = blocks[-1] if blocks else root, len(blocks) * size
        best, length = self._partial(parent, tokens[at : min(at + size, limit)])
        if length:
            blocks.append(best)
        return Hit(blocks, at + length)

    def _partial(self, parent: int, tokens: Sequence[int]) -> tuple[int, int]:
        """The child of `parent` that shares the most leading tokens, and how many."""
        best, length = ROOT, 0
        for block in self._children.get(parent, [])[-_SIBLINGS_TRIED:]:
            edge = self._edges[block][1]
            same = next(
                (i for i, (a, b) in enumerate(zip(edge, tokens, strict=False)) if a != b), len(tokens)
            )
            if same > length:
                best, length = block, same
        return best, length
