"""The KV cache under random scripts.

Blocks are conserved, shared text is found, nobody writes what another reads.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lightwork.errors import InvariantError, RangeError
from lightwork.memory.kv import KVCache


class CacheMachine(RuleBasedStateMachine):
    """Sequences come, grow, draft, roll back and leave. `store` is what a device would hold in each slot."""

    @initialize(blocks=st.integers(4, 24), size=st.sampled_from([1, 2, 4]))
    def start(self, blocks: int, size: int) -> None:
        self.kv = KVCache(blocks, size)
        self.store: dict[int, tuple[int, ...]] = {}
        self.texts: dict[int, list[int]] = {}
        self.done: dict[int, int] = {}
        self.next_id = 0

    def _write(self, seq: int, start: int, stop: int, text: list[int]) -> None:
        for i in range(start, stop):
            self.store[self.kv.slot(seq, i)] = tuple(text[: i + 1])

    def _grow(self, seq: int, upto: int) -> bool:
        need, free = self.kv.needs(seq, upto), self.kv.free
        copies = self.kv.reserve(seq, upto)
        assert (copies is None) == (need > free)
        for src, dst, num in copies or ():
            for i in range(num):
                self.store[dst + i] = self.store[src + i]
        return copies is not None

    @rule(text=st.lists(st.integers(0, 1), min_size=2, max_size=20))
    def admit(self, text: list[int]) -> None:
        hit = self.kv.peek(text)
        if self.kv.needs_new(hit, len(text)) > self.kv.free:
            return
        seq, self.next_id = self.next_id, self.next_id + 1
        assert self.kv.attach(seq, text) == hit.num_tokens < len(text)
        self.texts[seq], self.done[seq] = text, hit.num_tokens
        assert self._grow(seq, len(text)), "needs_new promised that this fits"

    @rule(data=st.data(), more=st.lists(st.integers(0, 1), min_size=1, max_size=6))
    def compute(self, data: st.DataObject, more: list[int]) -> None:
        if not self.texts:
            return
        seq = data.draw(st.sampled_from(sorted(self.texts)))
        text = self.texts[seq]
        stop = data.draw(st.integers(self.done[seq], len(text)))
        if not self._grow(seq, stop):
            return
        self._write(seq, self.done[seq], stop, text)
        self.kv.commit(seq, text, stop)
        self.done[seq] = stop
        if stop == len(text):
            text.extend(more)

    @rule(data=st.data(), draft=st.lists(st.integers(0, 1), min_size=1, max_size=5))
    def draft_and_roll_back(self, data: st.DataObject, draft: list[int]) -> None:
        if not self.texts:
            return
        seq = data.draw(st.sampled_from(sorted(self.texts)))
        if self._grow(seq, self.done[seq] + len(draft)):
            for i in range(len(draft)):
                self.store[self.kv.slot(seq, self.done[seq] + i)] = ("scratch",)  # type: ignore[assignment]
            self.kv.trim(seq)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.texts:
            seq = data.draw(st.sampled_from(sorted(self.texts)))
            self.kv.release(seq)
            del self.texts[seq], self.done[seq]

    @invariant()
    def conserved_and_true(self) -> None:
        self.kv.check()
        for seq, text in self.texts.items():
            for i in range(self.done[seq]):
                assert self.store[self.kv.slot(seq, i)] == tuple(text[: i + 1])

    def teardown(self) -> None:
        for seq in list(self.texts):
            self.kv.release(seq)
        self.kv.check()
        assert self.kv.free == self.kv.total


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def fill(kv: KVCache, seq: int, text: list[int]) -> None:
    kv.attach(seq, text)
    assert kv.reserve(seq, len(text)) is not None
    kv.commit(seq, text, len(text))


def test_a_shared_prefix_is_found_and_a_partly_shared_block_is_copied_on_write() -> None:
    kv = KVCache(8, 4)
    fill(kv, 0, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert kv.attach(1, [1, 2, 3, 4, 5, 6, 70, 80, 90]) == 6
    assert kv.table(1) == kv.table(0)[:2]
    (copy,) = kv.reserve(1, 9) or []
    assert copy == (kv.table(0)[1] * 4, kv.table(1)[1] * 4, 2)
    assert kv.table(1)[0] == kv.table(0)[0]
    assert kv.table(1)[1] != kv.table(0)[1]
    kv.check()


def test_what_models_compute_of_the_same_text_is_kept_apart() -> None:
    kv = KVCache(8, 4)
    fill(kv, 0, [1, 2, 3, 4, 5])
    assert kv.peek([1, 2, 3, 4, 5], None, "other").num_tokens == 0
    kv.attach(1, [1, 2, 3, 4, 5], model="other")
    kv.reserve(1, 5)
    kv.commit(1, [1, 2, 3, 4, 5], 5)
    assert kv.table(0)[0] != kv.table(1)[0]
    kv.pin(7, [1, 2, 3, 4], "other")
    kv.release(0)
    kv.release(1)
    assert kv.free == 7
    assert kv.peek([1, 2, 3, 4, 9], None, "other").blocks != kv.peek([1, 2, 3, 4, 9]).blocks
    kv.unpin(7)
    kv.check()


def test_the_last_token_is_always_left_to_compute() -> None:
    kv = KVCache(8, 4)
    fill(kv, 0, [1, 2, 3, 4])
    assert kv.peek([1, 2, 3, 4]).num_tokens == 3


def test_the_oldest_cached_text_is_given_up_first_and_leaves_before_roots() -> None:
    kv = KVCache(4, 2)
    fill(kv, 0, [1, 2, 3, 4])
    kv.release(0)
    fill(kv, 1, [5, 6, 7, 8])
    kv.release(1)
    fill(kv, 2, [9, 9])
    assert kv.peek([1, 2, 3, 4, 0]).num_tokens == 2
    assert kv.peek([5, 6, 7, 8, 0]).num_tokens == 4


def test_without_a_prefix_cache_nothing_is_shared() -> None:
    kv = KVCache(8, 2, prefix_cache=False)
    fill(kv, 0, [1, 2, 3])
    kv.release(0)
    assert kv.peek([1, 2, 3]).num_tokens == 0
    assert kv.free == 8


def test_accepted_rows_of_a_tree_move_down() -> None:
    kv = KVCache(4, 4)
    fill(kv, 0, [1, 2])
    kv.reserve(0, 7)
    assert kv.keep(0, 2, [1, 3]) == [(kv.slot(0, 3), kv.slot(0, 2), 1), (kv.slot(0, 5), kv.slot(0, 3), 1)]
    assert kv.keep(0, 2, [0, 1, 2]) == []


def test_a_pinned_prefix_stays_whoever_has_computed_it_ends() -> None:
    kv = KVCache(4, 2)
    fill(kv, 0, [1, 2, 3, 4, 5])
    kv.release(0)
    kv.pin(7, [1, 2, 3, 4])
    kv.check()
    assert kv.free == 2
    fill(kv, 1, [5, 6, 7, 8])
    kv.release(1)
    assert kv.attach(2, [1, 2, 3, 4, 9, 9], limit=2) == 2
    kv.release(2)
    kv.unpin(7)
    assert kv.free == 4
    kv.check()
    kv.pin(8, [])
    with pytest.raises(InvariantError, match="already pinned"):
        kv.pin(8, [])


def test_misuse_is_named() -> None:
    with pytest.raises(RangeError, match="at least 1"):
        KVCache(0)
    kv = KVCache(2, 2)
    kv.attach(0, [1, 2])
    with pytest.raises(InvariantError, match="already has a KV table"):
        kv.attach(0, [1, 2])
    with pytest.raises(InvariantError, match="cannot commit"):
        kv.commit(0, [1, 2], 2)
