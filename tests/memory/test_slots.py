"""Slots: texts lie in one piece, the living side by side, and no arrangement of them takes fewer moves."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lightwork.errors import CapacityError, RangeError
from lightwork.memory.kv import KVCache
from lightwork.memory.layouts.slots import Slots, reorder
from lightwork.memory.prefix import NO_HIT

MASKS = [mask for n in range(13) for mask in product((False, True), repeat=n)]


def neighbours(slots: list[int]) -> bool:
    return not slots or slots[-1] - slots[0] == len(slots) - 1


def fewest(mask: tuple[bool, ...]) -> int:
    """Moves to the nearest of all contiguous arrangements, by trying each."""
    live = {slot for slot, lives in enumerate(mask) if lives}
    ends = [set(range(start, start + len(live))) for start in range(len(mask) - len(live) + 1)]
    return min(len(live - end) for end in ends)


def test_no_arrangement_takes_fewer_moves_whichever_slots_live() -> None:
    for mask in MASKS:
        moves = reorder(mask)
        live = {slot for slot, lives in enumerate(mask) if lives}
        assert len(moves) == fewest(mask)
        assert {src for src, _ in moves} <= live
        assert not {dst for _, dst in moves} & live
        after = sorted((live - {src for src, _ in moves}) | {dst for _, dst in moves})
        assert len(after) == len(live)
        assert neighbours(after)


def test_neighbours_stay_where_they_are() -> None:
    contiguous = [mask for mask in MASKS if neighbours([i for i, lives in enumerate(mask) if lives])]
    assert len(contiguous) > 200
    assert all(reorder(mask) == [] for mask in contiguous)


SLOTS, SLOT_BLOCKS, SIZE = 5, 3, 2


class SlotsMachine(RuleBasedStateMachine):
    """Texts come, grow, leave and are gathered. `store`: what memory holds, by token."""

    @initialize(left_over=st.integers(0, SLOTS - 1))
    def start(self, left_over: int) -> None:
        self.kv = KVCache(SLOTS * SLOT_BLOCKS + left_over, SIZE, layout=Slots(max_seqs=SLOTS))
        self.store: dict[int, tuple[int, int]] = {}
        self.lengths: dict[int, int] = {}
        self.next_id = 0
        self.gathered = True

    @rule()
    def begin(self) -> None:
        needed = self.kv.needs_new(NO_HIT, 1)
        assert (needed > self.kv.free) == (len(self.lengths) == SLOTS)
        if len(self.lengths) == SLOTS:
            return
        seq, self.next_id = self.next_id, self.next_id + 1
        assert self.kv.attach(seq, [0]) == 0
        self.lengths[seq] = 0
        assert self.kv.reserve(seq, 1) == []

    @rule(data=st.data(), more=st.integers(1, SIZE * SLOT_BLOCKS))
    def grow(self, data: st.DataObject, more: int) -> None:
        """To the end of its slot, whoever else lives."""
        if not self.lengths:
            return
        seq = data.draw(st.sampled_from(sorted(self.lengths)))
        upto = min(self.kv.capacity(), self.lengths[seq] + more)
        assert self.kv.needs(seq, upto) == 0
        assert self.kv.reserve(seq, upto) == []
        for i in range(self.lengths[seq], upto):
            self.store[self.kv.slot(seq, i)] = (seq, i)
        self.kv.commit(seq, [0] * upto, upto)
        self.kv.trim(seq)
        self.lengths[seq] = upto

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.lengths:
            seq = data.draw(st.sampled_from(sorted(self.lengths)))
            self.kv.release(seq)
            del self.lengths[seq]
            self.gathered = False

    @rule()
    def gather(self) -> None:
        before = {seq: self._slot(seq) for seq in self.lengths}
        copies, left = self.kv.gather()
        mask = tuple(slot in before.values() for slot in range(SLOTS))
        moved = [seq for seq, slot in before.items() if self._slot(seq) != slot]
        assert len(moved) == fewest(mask)
        assert len(copies) == sum(self.lengths[seq] > 0 for seq in moved)
        for src, dst, num in copies:
            for i in range(num):
                if src + i in self.store:
                    self.store[dst + i] = self.store[src + i]
        for blocks in left:
            for i in range(blocks.start * SIZE, blocks.stop * SIZE):
                self.store.pop(i, None)
        living = sorted(map(self._slot, self.lengths))
        assert neighbours(living)
        assert {i // (SIZE * SLOT_BLOCKS) for i in self.store} <= set(living), "memory outside is given back"
        assert self.kv.gather() == ([], ())
        self.gathered = True

    @invariant()
    def in_one_piece_and_true(self) -> None:
        self.kv.check()
        for seq, length in self.lengths.items():
            first = self.kv.table(seq)[0]
            assert first % SLOT_BLOCKS == 0
            assert list(self.kv.table(seq)) == list(range(first, first + SLOT_BLOCKS))
            for i in range(length):
                assert self.store[self.kv.slot(seq, i)] == (seq, i)
        if self.gathered:
            assert neighbours(sorted(map(self._slot, self.lengths)))

    def _slot(self, seq: int) -> int:
        return self.kv.table(seq)[0] // SLOT_BLOCKS


TestSlotsMachine = SlotsMachine.TestCase
TestSlotsMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_text_that_begins_fills_a_hole_so_nothing_moves() -> None:
    kv = KVCache(10, 4, layout=Slots(max_seqs=5))
    for seq in range(5):
        kv.attach(seq, [0])
        kv.reserve(seq, 1)
    kv.release(2)
    kv.attach(9, [0])
    kv.reserve(9, 1)
    assert list(kv.table(9)) == [4, 5]
    assert kv.gather() == ([], [])


def test_only_what_is_committed_is_copied_in_whole_blocks() -> None:
    kv = KVCache(12, 4, layout=Slots(max_seqs=3))
    for seq, length in enumerate((1, 1, 6)):
        kv.attach(seq, [0])
        kv.reserve(seq, length)
        kv.commit(seq, [0] * length, length)
    kv.release(1)
    assert kv.gather() == ([(32, 16, 8)], [range(8, 12)])


def test_a_sequence_has_a_slot_and_shares_nothing() -> None:
    kv = KVCache(70, 4, layout=Slots(max_seqs=32))
    assert (kv.total, kv.capacity(), kv.max_seqs, kv.prefix_cache) == (64, 8, 32, False)
    assert kv.headroom(0.01) == 0
    for seq in range(2):
        assert kv.attach(seq, [1, 2, 3, 4, 5]) == 0
        kv.reserve(seq, 5)
        kv.commit(seq, [1, 2, 3, 4, 5], 5)


def test_slots_of_nothing_are_refused() -> None:
    with pytest.raises(RangeError, match="max_seqs=0"):
        Slots(max_seqs=0)
    with pytest.raises(CapacityError, match="3 KV blocks make no 4 slots"):
        KVCache(3, 4, layout=Slots(max_seqs=4))
