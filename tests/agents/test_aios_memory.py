"""What agents remember, and where it is: the same bytes always, and the items that the definition names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightwork.agents.aios.memory import Memory
from lightwork.errors import CapacityError, RangeError, UsageError
from lightwork.memory.residencies.lru import LRU
from lightwork.memory.residencies.lru_k import LRUK


class ByDefinition:
    """The block of one agent, its evictions looked up in the whole history of uses."""

    def __init__(self, block_bytes: int, k: int, high: float, low: float) -> None:
        self.high, self.low, self.k = int(high * block_bytes), int(low * block_bytes), k
        self.uses: list[str] = []
        self.here: dict[str, int] = {}

    def use(self, name: str, size: int) -> bool:
        """Whether it was in memory."""
        hit = name in self.here
        self.uses.append(name)
        self.here[name] = size
        if sum(self.here.values()) > self.high and not hit:
            last: dict[str, list[int]] = {}
            for at, one in enumerate(self.uses):
                last.setdefault(one, []).append(at)
            while sum(self.here.values()) > self.low and len(self.here) > 1:
                others = [one for one in self.here if one != name]
                gone = min(others, key=lambda one: (self._kth(last[one]), last[one][-1]))
                del self.here[gone]
        return hit

    def _kth(self, times: list[int]) -> int:
        return times[-self.k] if len(times) >= self.k else -1


@pytest.mark.parametrize("k", [1, 2])
def test_ten_thousand_accesses_find_what_the_definition_keeps(tmp_path: Path, k: int) -> None:
    rng = np.random.default_rng(k)
    memory = Memory(tmp_path, block_bytes=4000, policy=LRUK(k=k))
    reference = ByDefinition(4000, k, 0.8, 0.6)
    items: list[bytes] = []
    for _ in range(10_000):
        if not items or (len(items) < 120 and rng.random() < 0.05):
            items.append(rng.bytes(int(rng.integers(1, 200))))
            assert memory.add("ann", items[-1]) == f"{len(items) - 1}"
            reference.use(f"{len(items) - 1}", len(items[-1]))
        else:
            i = int(min(rng.zipf(1.2) - 1, len(items) - 1))
            hits = memory.hits
            assert memory.get("ann", f"{i}") == items[i]
            assert reference.use(f"{i}", len(items[i])) == (memory.hits > hits)
        assert set(memory.resident("ann")) == set(reference.here)
        assert memory.nbytes("ann") <= 3200
    assert memory.misses > 100


def hit_ratio(folder: Path, policy: LRU | LRUK) -> float:
    """Items that are used again and again, and now and then a scan of others that never are."""
    rng = np.random.default_rng(0)
    memory = Memory(folder, block_bytes=10_000, policy=policy)
    hot = [memory.add("ann", rng.bytes(100)) for _ in range(50)]
    cold = iter([memory.add("ann", rng.bytes(100)) for _ in range(1200)])
    memory.hits = memory.misses = 0
    for _ in range(20):
        for _ in range(100):
            memory.get("ann", hot[int(rng.integers(50))])
        for _ in range(60):
            memory.get("ann", next(cold))
    return memory.hits / (memory.hits + memory.misses)


def test_what_is_used_again_survives_scans(tmp_path: Path) -> None:
    assert hit_ratio(tmp_path / "a", LRUK()) - hit_ratio(tmp_path / "b", LRU()) >= 0.10


def test_agents_have_blocks_of_their_own(tmp_path: Path) -> None:
    memory = Memory(tmp_path, block_bytes=1000)
    one = memory.add("ann", b"a" * 500)
    for _ in range(20):
        memory.add("bob", b"b" * 100)
    assert memory.resident("ann") == [one]
    assert memory.nbytes("bob") <= 800
    with pytest.raises(UsageError, match="'bob' remembers no item '99'"):
        memory.get("bob", "99")


def test_what_was_flushed_is_there_for_the_next(tmp_path: Path) -> None:
    memory = Memory(tmp_path, block_bytes=1000)
    names = [memory.add("../ann", bytes([i]) * 90) for i in range(12)]
    memory.flush()
    again = Memory(tmp_path, block_bytes=1000)
    assert [again.get("../ann", name) for name in names] == [bytes([i]) * 90 for i in range(12)]
    assert again.add("../ann", b"new") == "12"
    assert [place.name for place in tmp_path.iterdir()] == ["=..%2Fann"]


def test_what_no_block_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="601 bytes"):
        Memory(tmp_path, block_bytes=1000).add("ann", b"x" * 601)
    with pytest.raises(RangeError, match="watermarks"):
        Memory(tmp_path, high=0.5, low=0.6)
