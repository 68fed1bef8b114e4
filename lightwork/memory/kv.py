"""The KV cache as the engine and its schedulers see it: counts and block numbers, never tensors.

A sequence's table lists the blocks that hold its keys and values. Its committed length is the number of
tokens whose KV counts; slots above it are scratch of the step in flight, so rolling a draft back is only
not committing it. Full committed blocks are published in the prefix tree and from then on never written
again.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lightwork.errors import InvariantError, RangeError
from lightwork.memory.blocks import BlockPool
from lightwork.memory.host import HostBlocks, Transfer
from lightwork.memory.layouts import Layout
from lightwork.memory.layouts.paged import Paged
from lightwork.memory.prefix import NO_HIT, ROOT, Hit, PrefixTree
from lightwork.memory.tiers import Tier


class Copy(NamedTuple):
    """Copy the KV of `num_slots` slots, in all layers; slot = block * block_size + offset."""

    src: int
    dst: int
    num_slots: int = 1


@dataclass(slots=True)
class Table:
    """One sequence's blocks. committed: tokens whose KV counts. published: leading blocks in the tree,
    below `root`.

    blocks: int32, so that a step's tables are filled by copying memory. shares_part: somebody else may read
    the partly committed block, as after attaching a prefix that ends in it.
    """

    blocks: array[int]
    committed: int = 0
    published: int = 0
    shares_part: bool = False
    root: int = ROOT


class KVCache:
    """KV blocks of one engine: tables by sequence id over a shared pool and prefix tree.

    num_blocks blocks of block_size tokens, for sequences of one model or several of one shape: what these
    compute of the same text is kept apart. prefix_cache=False publishes nothing, so nothing is ever shared;
    nor does a layout that divides the blocks among sequences.
    tier, tier_blocks: what keeps texts that were given up, and how many blocks of them.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int = 16,
        *,
        prefix_cache: bool = True,
        layout: Layout | None = None,
        tier: Tier | None = None,
        tier_blocks: int = 0,
    ) -> None:
        if block_size < 1:
            raise RangeError(f"KV blocks of {block_size} tokens", expected="at least 1", fix="block_size=16")
        layout = layout or Paged()
        self.block_size = block_size
        self.prefix_cache = prefix_cache and not layout.max_seqs
        self.max_seqs = layout.max_seqs
        self._tree = PrefixTree(block_size)
        self._pool = BlockPool(num_blocks, self._tree.forget, layout)
        self._grain = self.total // self.max_seqs if self.max_seqs else 1
        self._grain_tokens = self._grain * block_size
        self._tables: dict[int, Table] = {}
        self._roots = {"": ROOT}
        self._pins: dict[int, list[int]] = {}
        self.host = HostBlocks(tier_blocks, block_size, tier, layout) if tier is not None else None
        self._read: dict[int, list[Transfer]] = {}
        self._conflicts: list[Transfer] = []

    @property
    def total(self) -> int:
        """Blocks in all."""
        return self._pool.num_blocks

    @property
    def free(self) -> int:
        """Blocks that a reservation could have: blank ones and cached ones nobody holds."""
        return self._pool.free

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences hold, 0 to 1."""
        return 1.0 - self.free / self.total

    @property
    def num_pins(self) -> int:
        """Prefixes that are pinned."""
        return len(self._pins)

    @property
    def pinned_tokens(self) -> int:
        """Tokens of the prefixes that are pinned, as they are held."""
        return sum(map(len, self._pins.values())) * self.block_size

    def capacity(self) -> int:
        """Tokens that fit when one sequence has everything that it may have."""
        return self._grain_tokens if self.max_seqs else self.total * self.block_size

    # -- reading, for schedulers

    def peek(self, tokens: Sequence[int], limit: int | None = None, model: str = "") -> Hit:
        """The prefix cached for a model that attach() would share, of at most `limit` tokens.

        At least the last token is left to compute.
        """
        most = _most(tokens, limit)
        found = self.prefix_cache and most > 0
        return self._tree.find(tokens, most, self._root(model)) if found else NO_HIT

    def fetchable(self, tokens: Sequence[int], cached: int, limit: int | None = None, model: str = "") -> int:
        """Tokens that host memory holds beyond the first `cached` ones, of at most `limit` in all."""
        if self.host is None:
            return 0
        most = _most(tokens, limit)
        held = self.host.find(tokens, most, self._root(model))
        return max(0, min(len(held) * self.block_size, most) - cached)

    def needs(self, seq_id: int, upto: int) -> int:
        """Free blocks that reserve(seq_id, upto) would take."""
        table = self._tables[seq_id]
        missing = -(-upto // self._grain_tokens) * self._grain - len(table.blocks)
        return (missing if missing > 0 else 0) + table.shares_part

    def needs_new(self, hit: Hit, upto: int) -> int:
        """Free blocks that attaching `hit` and reserving `upto` tokens would take, revived ones included."""
        revived = sum(1 for block in hit.blocks if self._pool.references(block) == 0)
        in_part = 1 if hit.num_tokens % self.block_size else 0
        return self._blocks_for(upto) - len(hit.blocks) + in_part + revived

    def headroom(self, share: float) -> int:
        """Blocks to leave free for texts to grow into, where a share of all is to be left."""
        return 0 if self.max_seqs else int(share * self.total)

    def gains(self, seq_id: int) -> int:
        """Free blocks that releasing the sequence would add."""
        return sum(1 for block in self._tables[seq_id].blocks if self._pool.references(block) == 1)

    def table(self, seq_id: int) -> array[int]:
        """The sequence's blocks in order, int32. Not to be kept: it grows in place."""
        return self._tables[seq_id].blocks

    # -- writing, for the engine

    def attach(self, seq_id: int, tokens: Sequence[int], limit: int | None = None, model: str = "") -> int:
        """Open a table that shares the longest cached prefix, of at most `limit` tokens; returns how many it
        holds already."""
        if seq_id in self._tables:
            raise InvariantError(
                f"sequence {seq_id} already has a KV table", expected="one attach per admission"
            )
        hit = self.peek(tokens, limit, model)
        for block in hit.blocks:
            self._pool.hold(block)
        full, part = divmod(hit.num_tokens, self.block_size)
        self._tables[seq_id] = Table(
            array("i", hit.blocks), hit.num_tokens, full, part > 0, self._root(model)
        )
        return hit.num_tokens

    def reserve(self, seq_id: int, upto: int) -> list[Copy] | None:
        """Make the slots from the committed length up to `upto` exclusive to the sequence, all or nothing.

        Returns the copies to carry out before the slots are written (a shared last block is copied on
        write), or None when blocks are short.
        """
        table = self._tables[seq_id]
        missing = -(-upto // self._grain_tokens) * self._grain - len(table.blocks)
        if missing <= 0 and not table.shares_part:
            return []
        if max(0, missing) + table.shares_part > self.free:
            return None
        copies = []
        if table.shares_part:
            tail = table.committed // self.block_size
            old, new = table.blocks[tail], self._take(table.blocks[tail - 1] if tail else -1)
            table.blocks[tail] = new
            copies.append(
                Copy(old * self.block_size, new * self.block_size, table.committed % self.block_size)
            )
            self._drop(old)
            table.shares_part = False
        for _ in range(missing):
            table.blocks.append(self._take(table.blocks[-1] if table.blocks else -1))
        return copies

    def commit(self, seq_id: int, tokens: Sequence[int], length: int) -> None:
        """The KV of tokens[:length] stands; full blocks are published, duplicates given up."""
        table = self._tables[seq_id]
        if not table.committed <= length <= len(table.blocks) * self.block_size or length > len(tokens):
            raise InvariantError(f"sequence {seq_id} cannot commit {length} tokens from {table.committed}")
        table.committed = length
        if self.prefix_cache and (table.published + 1) * self.block_size <= length:
            self._publish(table, tokens)

    def _publish(self, table: Table, tokens: Sequence[int]) -> None:
        """Put blocks that have become full into the tree."""
        size = self.block_size
        while (table.published + 1) * size <= table.committed:
            i = table.published
            parent = table.blocks[i - 1] if i else table.root
            mine = table.blocks[i]
            block = self._tree.publish(parent, tuple(tokens[i * size : (i + 1) * size]), mine)
            if block != mine:
                self._pool.hold(block)
                table.blocks[i] = block
                self._drop(mine)
            table.published += 1

    def keep(self, seq_id: int, known: int, path: Sequence[int]) -> list[Copy]:
        """Copies that move accepted draft rows (slots known + node) down to follow the known tokens."""
        return [
            Copy(self.slot(seq_id, known + node), self.slot(seq_id, known + i))
            for i, node in enumerate(path)
            if node != i
        ]

    def trim(self, seq_id: int) -> None:
        """Give back blocks that hold no committed token: what a rejected draft or a reservation left over."""
        table = self._tables[seq_id]
        while len(table.blocks) > self._blocks_for(table.committed):
            self._drop(table.blocks.pop())

    def release(self, seq_id: int) -> None:
        """Close the table. Published blocks stay cached, last first, so that leaves are given up first."""
        for block in reversed(self._tables.pop(seq_id).blocks):
            self._drop(block)

    def pin(self, name: int, tokens: Sequence[int], model: str = "") -> None:
        """Hold the blocks of a text that are cached, all of its tokens at most, until unpin(name)."""
        if name in self._pins:
            raise InvariantError(f"a prefix {name} is already pinned", expected="one pin per name")
        blocks = self._tree.find(tokens, len(tokens), self._root(model)).blocks if self.prefix_cache else []
        for block in blocks:
            self._pool.hold(block)
        self._pins[name] = blocks

    def unpin(self, name: int) -> None:
        """Let go of a pinned prefix; its blocks stay cached while nobody needs the room."""
        for block in reversed(self._pins.pop(name)):
            self._drop(block)

    # -- host memory

    def store(self, seq_id: int, tokens: Sequence[int]) -> Transfer | None:
        """Begin to copy the committed blocks of a sequence to host memory, those that are not there.

        A last one that is not full is left out, unless the tier takes parts.
        Until `stored` the blocks are read, even if somebody else is given them; see `conflicts`. None if
        there is nothing to copy.
        """
        table = self._tables[seq_id]
        if self.host is None:
            return None
        size = self.block_size
        limit = table.committed if self.host.tier.parts else table.committed // size * size
        blocks = table.blocks[: -(-limit // size)]
        transfer = self.host.store(tokens, blocks, limit, table.root) if blocks else None
        if transfer is not None:
            for block in transfer.src:
                self._read.setdefault(block, []).append(transfer)
        return transfer

    def stored(self, transfer: Transfer, *, arrived: bool) -> None:
        """Copies to host memory have ended."""
        for block in transfer.src:
            self._read[block].remove(transfer)
            if not self._read[block]:
                del self._read[block]
        assert self.host is not None
        self.host.stored(transfer, arrived=arrived)

    def fetch(self, seq_id: int, tokens: Sequence[int]) -> Transfer:
        """Begin to copy a text from host memory into the sequence's reserved blocks, behind the committed
        ones.

        At least the last token is left to compute.
        """
        assert self.host is not None
        table = self._tables[seq_id]
        known = table.committed // self.block_size
        return self.host.fetch(tokens, table.blocks, known, _most(tokens, None), table.root)

    def fetched(self, transfer: Transfer) -> None:
        """Copies from host memory have ended."""
        assert self.host is not None
        self.host.fetched(transfer)

    def conflicts(self) -> list[Transfer]:
        """Copies to host memory that read blocks given out since the last call: to be waited for before these
        are written."""
        found, self._conflicts = self._conflicts, []
        return found

    def _take(self, after: int) -> int:
        block = self._pool.take(after)
        if block in self._read:
            self._conflicts += self._read[block]
        return block

    def gather(self) -> tuple[list[Copy], Sequence[range]]:
        """Bring sequences together in memory, if the layout does that; their tables say at once where they
        will be.

        Returns the copies to carry out before anything is written, and blocks that hold nothing afterwards.
        Nobody may be reading or writing blocks meanwhile.
        """
        moves, left = self._pool.gather()
        copies = []
        if moves:
            tables = {table.blocks[0]: table for table in self._tables.values() if table.blocks}
            for src, dst, num in moves:
                tables[src].blocks[:] = array("i", range(dst, dst + num))
                if tables[src].committed:
                    size = self.block_size
                    whole = -(-tables[src].committed // size) * size
                    copies.append(Copy(src * size, dst * size, whole))
        return copies, left

    def slot(self, seq_id: int, index: int) -> int:
        return (
            self._tables[seq_id].blocks[index // self.block_size] * self.block_size + index % self.block_size
        )

    def check(self) -> None:
        """Raise InvariantError unless every block is blank, cached or held, as often as tables say."""
        held = Counter(block for table in self._tables.values() for block in table.blocks)
        held.update(block for pinned in self._pins.values() for block in pinned)
        self._pool.check(held)

    def _root(self, model: str) -> int:
        return self._roots.setdefault(model, ROOT - len(self._roots))

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._grain_tokens) * self._grain

    def _drop(self, block: int) -> None:
        self._pool.drop(block, cache=block in self._tree)


def _most(tokens: Sequence[int], limit: int | None) -> int:
    """Tokens that may be found computed: all but the last, which says what follows."""
    return len(tokens) - 1 if limit is None else min(limit, len(tokens) - 1)
