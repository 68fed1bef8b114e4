"""What agents remember: each has a block of memory; what its policy gives up goes to disk and comes back.

Items never change, so one that has been written once is given up without another write.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

from lightwork.agents.aios.storage import file_name
from lightwork.errors import CapacityError, RangeError, UsageError
from lightwork.memory.residencies import Residency
from lightwork.memory.residencies.lru_k import LRUK


@dataclass(slots=True)
class Block:
    """One agent's. items: those in memory, by name. stored: names of those on disk. order: the policy's
    state. ids: of items to come."""

    order: Any
    ids: count[int]
    items: dict[str, bytes] = field(default_factory=dict)
    stored: set[str] = field(default_factory=set)
    nbytes: int = 0


class Memory:
    """folder: where items go that are given up; they are found there again after a restart. block_bytes: of
    each agent's block. policy: which items go. high, low: shares of the block; when more than `high` is used,
    items go until no more than `low` is.

    hits, misses: of all reads, those of items in memory, and others. May be used from any thread.
    """

    def __init__(
        self,
        folder: Path,
        *,
        block_bytes: int = 1 << 20,
        policy: Residency[Any] | None = None,
        high: float = 0.8,
        low: float = 0.6,
    ) -> None:
        if not 0 < low <= high <= 1:
            raise RangeError(f"watermarks of {low:g} and {high:g}", expected="0 < low <= high <= 1")
        self._folder = folder
        self._policy = policy or LRUK()
        self._high_bytes, self._low_bytes = int(high * block_bytes), int(low * block_bytes)
        self._blocks: dict[str, Block] = {}
        self._lock = Lock()
        self.hits = self.misses = 0

    def add(self, agent: str, item: bytes) -> str:
        """Remember something; returns its name. Raises CapacityError if no block can hold it."""
        if len(item) > self._low_bytes:
            raise CapacityError(
                f"an item of {len(item)} bytes",
                expected=f"at most {self._low_bytes}",
                fix="raise block_bytes",
            )
        with self._lock:
            block = self._block(agent)
            name = f"{next(block.ids)}"
            self._use(agent, block, name, item)
            return name

    def get(self, agent: str, name: str) -> bytes:
        """What was remembered, byte for byte. Raises UsageError for a name that add() did not return."""
        with self._lock:
            block = self._block(agent)
            item = block.items.get(name)
            if item is not None:
                self.hits += 1
                self._policy.use(block.order, name)
                return item
            if name not in block.stored:
                raise UsageError(f"{agent!r} remembers no item {name!r}", expected="a name that add() gave")
            self.misses += 1
            item = self._place(agent, name).read_bytes()
            self._use(agent, block, name, item)
            return item

    def resident(self, agent: str) -> list[str]:
        """Names of the items in memory."""
        with self._lock:
            return [*self._block(agent).items]

    def nbytes(self, agent: str) -> int:
        """Bytes of its block in use."""
        return self._block(agent).nbytes

    def flush(self) -> None:
        """Write what is not on disk yet: a later Memory over the same store has all of it."""
        with self._lock:
            for agent, block in self._blocks.items():
                for name in block.items:
                    self._write(agent, block, name)

    def _use(self, agent: str, block: Block, name: str, item: bytes) -> None:
        """An item comes into memory and is used; it is not among those that go for it."""
        self._policy.use(block.order, name)
        block.items[name] = item
        block.nbytes += len(item)
        if block.nbytes <= self._high_bytes:
            return
        others = dict.fromkeys(one for one in block.items if one != name)
        while block.nbytes > self._low_bytes and others:
            victim = self._policy.victim(block.order, others)
            del others[victim]
            self._write(agent, block, victim)
            block.nbytes -= len(block.items.pop(victim))

    def _write(self, agent: str, block: Block, name: str) -> None:
        if name in block.stored:
            return
        place = self._place(agent, name)
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_suffix(".part")
        part.write_bytes(block.items[name])
        part.replace(place)  # under its name it is whole
        block.stored.add(name)

    def _block(self, agent: str) -> Block:
        if agent not in self._blocks:
            folder = self._folder / file_name(agent)
            found = folder.iterdir() if folder.is_dir() else ()
            stored = {place.name for place in found if place.name.isdecimal()}
            first = max(map(int, stored), default=-1) + 1
            self._blocks[agent] = Block(self._policy.init(()), count(first), stored=stored)
        return self._blocks[agent]

    def _place(self, agent: str, name: str) -> Path:
        return self._folder / file_name(agent) / name
