"""Sequences that give up their KV and get it back: the same texts, nothing stale, only what is new is copied.

The runner of these tests remembers what each slot holds. Copies take random times, read at their end and
leave poison where they will write, so a step that does not wait for one that it must wait for is caught.
"""

from __future__ import annotations

import random
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest
from engines import UnitCost, expected, next_token, request
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightwork.errors import LightworkError
from lightwork.memory.host import Run
from lightwork.memory.kv import KVCache
from lightwork.memory.layouts import Layout
from lightwork.memory.layouts.block_groups import BlockGroups
from lightwork.memory.layouts.paged import Paged
from lightwork.memory.layouts.slots import Slots
from lightwork.memory.tiers.host_memory import HostMemory
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.engine import Engine
from lightwork.serve.schedulers import Step
from lightwork.serve.schedulers.fair import Fair
from lightwork.serve.schedulers.fast_switch import FastSwitch
from lightwork.serve.schedulers.prefill_first import PrefillFirst
from lightwork.serve.schedulers.prefix_groups import PrefixGroups
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.schedulers.split_fuse import SplitFuse
from lightwork.serve.sequence import Limits
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load
from lightwork.serve.simulated_runner import SimulatedRunner

SIZE = 4
POISON = object()
SWITCHING = FastSwitch(inner=Sarathi(chunk=16), every=3, stay=0.3)


class RememberingRunner(SimulatedRunner):
    """slots, host: what each slot of the two memories holds, a model and a text up to and with its token.

    ahead: steps are formed ahead, and each writes, as late as it can, where it was told to write when it was
    formed.
    """

    def __init__(self, kernel: Kernel, kv: KVCache, seed: int, *, ahead: bool = False) -> None:
        super().__init__(UnitCost(), ahead_s=1e-4 if ahead else None, script=next_token)
        self.kernel, self.kv, self.rng = kernel, kv, random.Random(seed)
        self.slots: dict[int, object] = {}
        self.host: dict[int, object] = {}
        self.broken: frozenset[str] = frozenset()

    def run(self, step: Step) -> Coroutine[Any, Any, Any]:
        rows = []
        for (seq, start, count), known in zip(step.chunks, step.known, strict=True):
            text = [*seq.tokens, next_token(seq, known - 1)][:known]
            assert len(text) == known
            rows.append((seq, text, start, [self.kv.slot(seq.id, i) for i in range(start + count)]))
        if not self.feeds:
            self._write(step, rows)
            return super().run(step)
        return self._run_late(step, rows)

    async def _run_late(self, step: Step, rows: Sequence[tuple[Seq, list[int], int, list[int]]]) -> Any:
        scores = await super().run(step)
        self._write(step, rows)
        return scores

    def _write(self, step: Step, rows: Sequence[tuple[Seq, list[int], int, list[int]]]) -> None:
        for src, dst, num in step.copies:
            for i in range(num):
                self.slots[dst + i] = self.slots.get(src + i)
        for blocks in step.left:
            for i in range(blocks.start * SIZE, blocks.stop * SIZE):
                self.slots[i] = POISON
        for seq, text, start, slots in rows:
            for i, slot in enumerate(slots):
                held = (seq.request.model, *text[: i + 1])
                if i < start:
                    assert self.slots[slot] == held, (seq, i)
                else:
                    self.slots[slot] = held

    def swap_out(self, runs: Sequence[Run]) -> Coroutine[Any, Any, None]:
        return self._swap("out", runs, self.slots, self.host)

    def swap_in(self, runs: Sequence[Run]) -> Coroutine[Any, Any, None]:
        return self._swap("in", runs, self.host, self.slots)

    async def _swap(self, way: str, runs: Sequence[Run], source: Any, target: Any) -> None:
        moves = [(SIZE * a + i, SIZE * b + i) for a, b, num in runs for i in range(num * SIZE)]
        for _, dst in moves:
            target[dst] = POISON
        await self.kernel.sleep(self.rng.random() * 0.05)
        if way in self.broken:
            raise LightworkError(f"no copies {way}")
        for src, dst in moves:
            target[dst] = source.get(src, POISON)  # of a block that is not full: written later


def make(
    scheduler: Any = SWITCHING,
    *,
    blocks: int = 16,
    host: int = 64,
    seed: int = 0,
    layout: Layout | None = None,
    tier: HostMemory | None = None,
    prefix_cache: bool = True,
    ahead: bool = False,
) -> Engine:
    kernel = Kernel(trace=Trace("test"))
    tier = tier or HostMemory()
    kv = KVCache(blocks, SIZE, prefix_cache=prefix_cache, layout=layout, tier=tier, tier_blocks=host)
    runner = RememberingRunner(kernel, kv, seed, ahead=ahead)
    return Engine(kernel, runner, kv, scheduler, limits=Limits(max_len=1000), vocab_size=50)


def spans(engine: Engine, kind: str) -> list[Span]:
    assert engine.kernel.trace is not None
    return [span for span in engine.kernel.trace.spans if span.kind == kind]


def blocks_of(engine: Engine, kind: str) -> list[int]:
    return [int(span.args["blocks"]) for span in spans(engine, kind) if span.args]


def assert_clean(engine: Engine) -> None:
    engine.kv.check()
    assert engine.kv.free == engine.kv.total
    assert engine.kv.host is not None
    engine.kv.host.check()


@settings(max_examples=200, deadline=None)
@example(  # a token came after its sequence was preempted and admitted again
    sizes=[(23, 3), (6, 5), (20, 4), (8, 4), (24, 2), (1, 1)],
    blocks=22,
    host=1,
    layout=Paged(),
    tier=HostMemory(),
    cache=True,
    broken=(),
    scheduler=SWITCHING,
    models=("",),
    ahead=True,
    seed=0,
)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 24), st.integers(1, 16)), min_size=2, max_size=14),
    blocks=st.integers(11, 30),
    host=st.integers(1, 60),
    layout=st.sampled_from([Paged(), BlockGroups(size=3), Slots(max_seqs=4)]),
    tier=st.sampled_from(
        [
            HostMemory(),
            HostMemory(merge=False),
            HostMemory(overlap=False),
            HostMemory(reuse=False),
            HostMemory(parts=True),
        ]
    ),
    cache=st.booleans(),
    broken=st.sampled_from([(), (), ("in",), ("out",)]),
    scheduler=st.sampled_from([SWITCHING, PrefixGroups(inner=Sarathi(chunk=16))]),
    models=st.sampled_from([("",), ("", "a", "b")]),
    ahead=st.booleans(),
    seed=st.integers(0, 99),
)
def test_no_schedule_of_copies_is_read_before_it_has_ended(
    sizes: list[tuple[int, int]],
    blocks: int,
    host: int,
    layout: Layout,
    tier: HostMemory,
    cache: bool,
    broken: tuple[str, ...],
    scheduler: Any,
    models: Sequence[str],
    ahead: bool,
    seed: int,
) -> None:
    if layout.max_seqs:  # each has room for the longest
        blocks, host = layout.max_seqs * blocks, layout.max_seqs * host
    engine = make(
        scheduler,
        blocks=blocks,
        host=host,
        layout=layout,
        tier=tier,
        prefix_cache=cache,
        ahead=ahead,
        seed=seed,
    )
    assert isinstance(engine.runner, RememberingRunner)
    engine.runner.broken = frozenset(broken)
    load = [
        request(range(i % 3, i % 3 + prompt), max_tokens=output, model=models[i % len(models)])
        for i, (prompt, output) in enumerate(sizes)
    ]
    seqs = run_load(engine, [0.004 * i for i in range(len(load))], load)
    assert [seq.tokens[seq.prompt_len :] for seq in seqs] == [expected(r) for r in load]
    assert_clean(engine)


LOAD = [request(range(i, i + 12 + i % 5), max_tokens=24) for i in range(12)]


def test_what_was_given_up_is_fetched_rather_than_computed() -> None:
    engine = make(host=400)
    seqs = run_load(engine, [0.0] * 12, LOAD)
    assert sum(seq.num_preempted for seq in seqs) > 10
    assert sum(blocks_of(engine, "fetch")) > 10
    computed = sum(chunk[2] for span in spans(engine, "step") if span.args for chunk in span.args["chunks"])
    again = computed - sum(seq.known - 1 for seq in seqs)
    assert 0 <= again < SIZE * sum(seq.num_preempted for seq in seqs)


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_with_its_last_part_stored_who_is_preempted_goes_on_decoding(prefix_cache: bool) -> None:
    engine = make(
        Sarathi(chunk=64), blocks=20, host=2000, tier=HostMemory(parts=True), prefix_cache=prefix_cache
    )
    seqs = run_load(engine, [0.0] * 12, LOAD)
    assert sum(seq.num_preempted for seq in seqs) > 5
    assert [seq.tokens[seq.prompt_len :] for seq in seqs] == [expected(r) for r in LOAD]
    begun, again = set(), 0
    for step in spans(engine, "step"):
        assert step.args is not None
        again += sum(count - 1 for id, _, count, _, _ in step.args["chunks"] if id in begun)
        begun |= {id for id, _, _, _, emitted in step.args["chunks"] if emitted}
    assert again == 0
    assert_clean(engine)


def test_each_block_of_a_text_is_copied_once_while_its_copy_stands() -> None:
    """However often a sequence is preempted: what is stored are its whole blocks, each once."""
    engine = make(host=400)
    seqs = run_load(engine, [0.0] * 12, [request(range(5 * i, 5 * i + 13), max_tokens=24) for i in range(12)])
    assert sum(seq.num_preempted for seq in seqs) > 10
    assert sum(blocks_of(engine, "store")) == sum((seq.known - 1) // SIZE for seq in seqs)


def test_without_reuse_everything_is_copied_each_time() -> None:
    with_reuse, without = make(host=400), make(host=400, tier=HostMemory(reuse=False))
    for engine in (with_reuse, without):
        run_load(engine, [0.0] * 12, LOAD)
    assert sum(blocks_of(without, "store")) > 1.5 * sum(blocks_of(with_reuse, "store"))


def test_turns_of_a_conversation_store_what_is_new() -> None:
    """Each goes on from the last one, which host memory still holds; others wash it out of the blocks."""
    engine, said, before = make(Sarathi(), blocks=20, host=400), list(range(9)), 0
    for turn in range(5):
        (seq,) = run_load(engine, [0.0], [request(said, max_tokens=8)])
        assert seq.cached == before * SIZE
        whole = (seq.known - 1) // SIZE
        assert blocks_of(engine, "store")[-1] == whole - before
        run_load(engine, [0.0], [request([100 + turn] * 76, max_tokens=4)])
        said, before = [*seq.tokens, *range(20 + turn, 26 + turn)], whole


def test_what_was_overwritten_is_copied_again_to_the_block() -> None:
    engine = make(Sarathi(), blocks=40, host=20)
    host = engine.kv.host
    assert host is not None
    text = list(range(48))
    run_load(engine, [0.0], [request(text, max_tokens=1)])
    assert blocks_of(engine, "store") == [12]
    run_load(engine, [0.0], [request(range(60, 116), max_tokens=1)])  # 14 blocks: 6 of the first text go
    assert len(host.find(text, 48)) == 6
    run_load(engine, [0.0], [request(text, max_tokens=1)])
    assert blocks_of(engine, "store") == [12, 14, 6]


def test_steps_go_on_while_copies_run_and_wait_for_them_where_asked() -> None:
    def overlapping(engine: Engine) -> int:
        run_load(engine, [0.001 * i for i in range(12)], LOAD)
        copies = spans(engine, "store") + spans(engine, "fetch")
        return sum(
            step.start_s < copy.end_s and copy.start_s < step.end_s
            for step in spans(engine, "step")
            for copy in copies
            if copy.start_s < copy.end_s
        )

    assert overlapping(make(host=400)) > 20
    assert overlapping(make(host=400, tier=HostMemory(overlap=False))) == 0


def test_the_highest_priorities_that_fit_run() -> None:
    engine = make(FastSwitch(inner=Sarathi(chunk=64), every=2, stay=0.0), blocks=12)
    seqs = run_load(engine, [0.0] * 8, [request(range(i, i + 20), max_tokens=12) for i in range(8)])
    assert all(seq.finished == "length" for seq in seqs)
    assert max(span.args["running"] for span in spans(engine, "step") if span.args) <= 2
    assert sum(seq.num_preempted for seq in seqs) >= 8


EVERY = FastSwitch(inner=Sarathi(chunk=16), every=2, stay=0.3)


@pytest.mark.parametrize(
    "scheduler",
    [
        Fair(inner=EVERY),
        PrefixGroups(inner=EVERY),
        PrefixGroups(inner=Fair(inner=Sarathi(chunk=16))),
        Fair(inner=PrefixGroups()),
        *(
            FastSwitch(inner=inner, every=2, stay=0.3)
            for inner in (
                Fair(),
                PrefixGroups(),
                PrefillFirst(),
                SplitFuse(tokens=16),
                Fair(inner=PrefixGroups()),
            )
        ),
    ],
    ids=repr,
)
def test_schedulers_compose_with_host_memory(scheduler: Any) -> None:
    engine = make(scheduler, host=400)
    load = [request([7] * (4 * (i % 3)) + [*range(i, i + 12)], 12, tenant="ab"[i % 2]) for i in range(24)]
    seqs = run_load(engine, [0.003 * i for i in range(24)], load)
    assert [seq.tokens[seq.prompt_len :] for seq in seqs] == [expected(r) for r in load]
    run_load(engine, [0.0] * 24, load)  # what host memory has is fetched now
    assert_clean(engine)


def test_sequences_that_begin_alike_and_are_stored_together_keep_their_own() -> None:
    engine = make(Sarathi(), blocks=200, host=400, prefix_cache=False)
    texts = [[*range(16), *(100 * i + k for k in range(16))] for i in range(1, 6)]
    run_load(engine, [0.0] * 5, [request(text, max_tokens=1) for text in texts])
    assert engine.kv.host is not None
    assert [len(engine.kv.host.find(text, 32)) for text in texts] == [8] * 5
    assert_clean(engine)


def test_hanging_up_while_copies_run_frees_everything() -> None:
    engine = make(host=400)
    seqs = [engine.submit(r)[0] for r in LOAD]

    async def main() -> None:
        for i, seq in enumerate(seqs):
            await engine.kernel.sleep(0.01)
            if i % 2:
                engine.cancel([seq])
        await engine.drained()

    serving = engine.kernel.spawn(engine.run())
    engine.kernel.run(main())
    serving.cancel()
    assert_clean(engine)
