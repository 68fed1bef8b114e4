"""Where blocks lie: every layout gives each out once, and block groups are long while there is room."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.errors import CapacityError, RangeError
from lightwork.memory.host import runs
from lightwork.memory.kv import KVCache
from lightwork.memory.layouts import Layout
from lightwork.memory.layouts.block_groups import BlockGroups
from lightwork.memory.layouts.paged import Paged
from lightwork.memory.layouts.slots import Slots
from lightwork.memory.tiers.host_memory import HostMemory

LAYOUTS: list[Layout] = [
    Paged(),
    BlockGroups(size=1),
    BlockGroups(size=4),
    BlockGroups(),
    Slots(max_seqs=1),
    Slots(max_seqs=4),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
@given(num=st.integers(4, 40), script=st.lists(st.integers(-20, 40), max_size=120))
def test_each_block_is_given_out_once(layout: Layout, num: int, script: list[int]) -> None:
    """Negative: give back one of those held; else take one, after that block if it is held."""
    blanks = layout.blanks(num)
    num = len(blanks)
    held: list[int] = []
    for what in script:
        if what < 0 and held:
            blanks.give(held.pop(what % len(held)))
        elif what >= 0 and len(blanks):
            held.append(blanks.take(what if what in held else -1))
        assert len(blanks) + len(held) == num
        assert sorted([*blanks, *held]) == list(range(num))


def test_a_group_grows_behind_its_last_block() -> None:
    blanks = BlockGroups(size=8).blanks(100)
    tables: list[list[int]] = [[], [], []]
    for _ in range(8):
        for table in tables:
            table.append(blanks.take(table[-1] if table else -1))
    assert [len(runs(t, t)) for t in tables] == [1, 1, 1]


def test_tails_are_given_away_down_to_the_last_block() -> None:
    blanks = BlockGroups(size=60).blanks(64)
    last = [blanks.take(-1) for _ in range(4)]
    while len(blanks):
        for i, block in enumerate(last):
            if len(blanks):
                last[i] = blanks.take(block)
    assert len(blanks) == 0


def mean_run(layout: Layout) -> float:
    """Blocks per copy when sequences that came and went and grew for a while are moved one by one."""
    rng = random.Random(0)
    kv = KVCache(2000, 16, prefix_cache=False, layout=layout)
    live: dict[int, int] = {}
    moved = copies = 0
    for seq in range(600):
        while live and kv.free < 300:
            gone = rng.choice(sorted(live))
            table = kv.table(gone)
            moved, copies = moved + len(table), copies + len(runs(table, table))
            kv.release(gone)
            del live[gone]
        kv.attach(seq, [0])
        live[seq] = rng.randint(16, 1600)
        for _ in range(40):
            for one in live:
                if kv.free > 20:
                    kv.reserve(one, live[one])
                    live[one] += 1
    return moved / copies


def test_groups_make_long_runs() -> None:
    """The publication's bar: ten blocks a copy."""
    assert mean_run(BlockGroups()) >= 10 > 4 > mean_run(Paged())


def test_runs_join_neighbours_on_both_sides() -> None:
    assert runs([1, 2, 3, 7, 8], [4, 5, 9, 10, 11]) == [(1, 4, 2), (3, 9, 1), (7, 10, 2)]
    assert runs([1, 2], [4, 5], merge=False) == [(1, 4, 1), (2, 5, 1)]


def test_sizes_that_hold_nothing_are_refused() -> None:
    with pytest.raises(RangeError, match="size=0"):
        BlockGroups(size=0)
    with pytest.raises(RangeError, match="gb=0"):
        HostMemory(gb=0)
    with pytest.raises(CapacityError, match="holds no KV block"):
        HostMemory(gb=1e-9).num_blocks(1 << 20)
