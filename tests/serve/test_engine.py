"""The engine's laws, for every scheduler: nothing lost, nothing leaked, the same text always."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import pytest
from engines import expected, make_engine, next_token, request
from hypothesis import given, settings
from hypothesis import strategies as st

from lightwork.decode.proposers.ngram import Ngram
from lightwork.decode.sampling import Pick
from lightwork.errors import BusyError, CapacityError, InvariantError, LightworkError, RangeError, SpecError
from lightwork.memory.layouts.slots import Slots
from lightwork.serve.engine import Engine
from lightwork.serve.replay import decisions
from lightwork.serve.schedulers import Scheduler, Step, View
from lightwork.serve.schedulers.context_switch import ContextSwitch
from lightwork.serve.schedulers.fast_switch import FastSwitch
from lightwork.serve.schedulers.flover import Flover
from lightwork.serve.schedulers.nano_flow import NanoFlow
from lightwork.serve.schedulers.prefill_first import PrefillFirst
from lightwork.serve.schedulers.prefix_groups import PrefixGroups
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.schedulers.split_fuse import SplitFuse
from lightwork.serve.schedulers.static_batches import StaticBatches
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load
from lightwork.techniques import Technique, listing, parse

# Every scheduler there is, found by listing, and the settings that strain two of them.
SCHEDULERS: list[Scheduler[Any]] = [
    *(t.load()() for t in listing() if t.kind == "scheduler"),
    Sarathi(chunk=7),
    Sarathi(chunk=64),
    Sarathi(chunk=1),
    PrefillFirst(max_tokens=9),
    SplitFuse(tokens=7),
    SplitFuse(tokens=1),
    Flover(lane=5),
    StaticBatches(size=3),
    PrefixGroups(inner=Sarathi(chunk=7)),
    PrefixGroups(inner=SplitFuse(tokens=7), memory=0.5),
]


@pytest.mark.parametrize("technique", listing(), ids=lambda t: t.name)
def test_a_technique_is_a_value(technique: Technique) -> None:
    made = technique.load()()
    assert parse(repr(made)) == made == pickle.loads(pickle.dumps(made))


def outputs(seqs: Sequence[Seq]) -> list[list[int]]:
    return [seq.tokens[seq.prompt_len :] for seq in seqs]


def rows_and_waiting(engine: Engine) -> list[tuple[int, int]]:
    """Rows of each step, and how many waited when it ended."""
    assert engine.kernel.trace is not None
    found = [span.args for span in engine.kernel.trace.spans if span.kind == "step"]
    return [(sum(chunk[2] for chunk in args["chunks"]), args["waiting"]) for args in found if args]


def assert_clean(engine: Engine) -> None:
    engine.kv.check()
    assert engine.kv.free == engine.kv.total
    assert not engine.waiting
    assert not engine.running


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=repr)
@pytest.mark.parametrize("proposer", [None, Ngram(k=3)], ids=repr)
def test_every_scheduler_gives_the_text_of_plain_decoding(
    scheduler: Scheduler[Any], proposer: Ngram | None
) -> None:
    requests = [request(range(i, i + 3 * i + 1), max_tokens=1 + 5 * i) for i in range(8)]
    engine = make_engine(scheduler, blocks=40, proposer=proposer)
    seqs = run_load(engine, [0.0] * len(requests), requests)
    assert outputs(seqs) == [expected(r) for r in requests]
    assert_clean(engine)


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=repr)
@pytest.mark.parametrize("proposer", [None, Ngram(k=3)], ids=repr)
def test_every_scheduler_runs_in_slots(scheduler: Scheduler[Any], proposer: Ngram | None) -> None:
    """Each has room to its end from the beginning: nobody is preempted but for his turn."""
    requests = [request(range(i, i + 3 * i + 1), max_tokens=1 + 5 * i) for i in range(8)]
    engine = make_engine(scheduler, blocks=47, layout=Slots(max_seqs=3), proposer=proposer)
    seqs = run_load(engine, [0.004 * i for i in range(8)], requests)
    assert outputs(seqs) == [expected(r) for r in requests]
    assert engine.kernel.trace is not None
    assert max(span.args["running"] for span in engine.kernel.trace.spans if span.kind == "step") <= 3
    assert isinstance(scheduler, FastSwitch | ContextSwitch) or sum(seq.num_preempted for seq in seqs) == 0
    assert_clean(engine)


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=repr)
def test_preemption_recomputes_and_changes_nothing(scheduler: Scheduler[Any]) -> None:
    requests = [request([i, i + 1, i + 2], max_tokens=30) for i in range(6)]
    engine = make_engine(scheduler, blocks=12)
    seqs = run_load(engine, [0.0] * 6, requests)
    alone = scheduler in (Sarathi(chunk=1), SplitFuse(tokens=1))  # never admits while one decodes
    foreseen = isinstance(scheduler, PrefixGroups | NanoFlow)  # never admits more than will fit
    assert (sum(seq.num_preempted for seq in seqs) > 0) != (alone or foreseen)
    assert outputs(seqs) == [expected(r) for r in requests]
    assert_clean(engine)


def test_drafts_are_accepted_where_text_repeats_and_save_steps() -> None:
    plain, drafted = make_engine(), make_engine(proposer=Ngram(k=4))
    requests = [request(max_tokens=100)]
    run_load(plain, [0.0], requests)
    (seq,) = run_load(drafted, [0.0], requests)
    assert outputs([seq]) == [expected(requests[0])]
    assert seq.accepted > 0
    assert drafted.steps < 0.4 * plain.steps


def test_under_memory_pressure_drafts_are_dropped_first() -> None:
    engine = make_engine(blocks=9, proposer=Ngram(k=8))
    requests = [request([i, i], max_tokens=16) for i in range(2)]
    seqs = run_load(engine, [0.0, 0.0], requests)
    assert outputs(seqs) == [expected(r) for r in requests]
    assert sum(seq.num_preempted for seq in seqs) == 0
    assert_clean(engine)


def steps_of(engine: Engine) -> list[list[tuple[int, int, int, int, int]]]:
    assert engine.kernel.trace is not None
    return [list(s.args["chunks"]) for s in engine.kernel.trace.spans if s.kind == "step"]


def test_sarathi_never_exceeds_its_budget_and_never_stalls_a_decode() -> None:
    engine = make_engine(Sarathi(chunk=16), blocks=200)
    requests = [request([i], max_tokens=60) for i in range(4)] + [request(range(150), max_tokens=3)]
    run_load(engine, [0.0] * 4 + [0.01], requests)
    for chunks in steps_of(engine):
        assert sum(count for _, _, count, _, _ in chunks) <= 16
        assert len({seq for seq, *_ in chunks}) == len(chunks)
    during = [
        chunks for chunks in steps_of(engine) if any(seq == 4 and count > 1 for seq, _, count, _, _ in chunks)
    ]
    assert len(during) >= 150 // 16
    assert all({0, 1, 2, 3} <= {seq for seq, *_ in chunks} for chunks in during[1:])


def test_with_more_decodes_than_budget_none_starves() -> None:
    engine = make_engine(Sarathi(chunk=2))
    requests = [request([i], max_tokens=12) for i in range(5)]
    seqs = run_load(engine, [0.0] * 5, requests)
    assert outputs(seqs) == [expected(r) for r in requests]


def test_split_fuse_fills_every_pass_exactly_while_there_is_work() -> None:
    engine = make_engine(SplitFuse(tokens=16), blocks=400, prefix_cache=False)
    requests = [request(range(i, i + 5 + 7 * (i % 4)), max_tokens=3 + i % 5) for i in range(30)]
    run_load(engine, [0.0] * 30, requests)
    steps = rows_and_waiting(engine)
    left = sum(len(r.prompt) + r.max_tokens - 1 for r in requests)
    assert sum(rows for rows, _ in steps) == left
    assert all(rows == 16 for rows, waiting in steps if waiting)
    assert max(rows for rows, _ in steps) == 16


def test_split_fuse_lets_decodes_sit_out_and_preempts_only_when_stuck() -> None:
    """Room for one request and a half: both run until neither has a block, then the second starts again."""
    engine = make_engine(SplitFuse(tokens=16), blocks=9, prefix_cache=False)
    seqs = run_load(
        engine, [0.0, 0.0], [request(range(8), max_tokens=16), request(range(1, 9), max_tokens=16)]
    )
    assert [seq.num_preempted for seq in seqs] == [0, 1]
    assert outputs(seqs) == [expected(seq.request) for seq in seqs]
    assert seqs[0].finished_s is not None
    assert seqs[1].finished_s is not None
    assert seqs[0].finished_s < seqs[1].finished_s
    assert_clean(engine)


def test_split_fuse_puts_the_preempted_behind_those_who_wait() -> None:
    engine = make_engine(SplitFuse(tokens=16), blocks=9, prefix_cache=False, max_seqs=2)
    load = [request(range(i, i + 8), max_tokens=16) for i in range(2)] + [
        request(range(20, 26), max_tokens=2)
    ]
    first, second, third = run_load(engine, [0.0, 0.0, 0.001], load)
    assert (first.num_preempted, second.num_preempted) == (0, 1)
    assert third.finished_s is not None
    assert second.finished_s is not None
    assert third.finished_s < second.finished_s


def test_prefill_first_runs_prompts_or_decodes_never_both() -> None:
    engine = make_engine(PrefillFirst())
    run_load(engine, [0.0, 0.004, 0.008], [request(range(5, 15), max_tokens=8)] * 3)
    for chunks in steps_of(engine):
        assert len({count > 1 for _, _, count, _, _ in chunks}) == 1


def test_a_shared_prompt_is_computed_once_for_its_continuations() -> None:
    engine = make_engine()
    seqs = run_load(engine, [0.0], [request(range(20), max_tokens=4, n=3)])
    assert [seq.cached for seq in seqs] == [0, 19, 19]
    assert [seq.sampling.seed for seq in seqs] == [0, 1, 2]
    assert_clean(engine)


def test_steps_in_flight_overlap_in_a_pipeline_and_change_no_text() -> None:
    requests = [request([i, 2], max_tokens=20) for i in range(8)]
    flat, piped = make_engine(PrefillFirst(max_tokens=4)), make_engine(PrefillFirst(max_tokens=4), depth=4)
    run_load(flat, [0.0] * 8, requests)
    seqs = run_load(piped, [0.0] * 8, requests)
    assert outputs(seqs) == [expected(r) for r in requests]
    assert piped.kernel.now() < flat.kernel.now()
    assert_clean(piped)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (request([], 5), RangeError),
        (request([1], 0), RangeError),
        (request([1], 5, n=0), RangeError),
        (request(range(9_999), 5), CapacityError),
        (request(range(200), 100), CapacityError),
    ],
    ids=lambda x: "",
)
def test_a_request_that_can_never_run_is_refused_at_once(bad: Request, error: type[Exception]) -> None:
    engine = make_engine()
    with pytest.raises(error):
        engine.submit(bad)
    assert not engine.waiting


@pytest.mark.parametrize(
    "text",
    [
        "Sarathi(chunk=0)",
        "PrefillFirst(max_tokens=0)",
        "Sarathi(chunk=-5)",
        "Flover(lane=0)",
        "StaticBatches(size=0)",
    ],
)
def test_impossible_settings_are_refused_with_what_to_do(text: str) -> None:
    with pytest.raises(SpecError, match=r">= 1\n  try: "):
        parse(text)


def test_a_full_queue_says_so() -> None:
    engine = make_engine(max_waiting=2)
    engine.submit(request())
    engine.submit(request())
    with pytest.raises(BusyError, match="2 sequences are waiting"):
        engine.submit(request())


def test_more_continuations_than_the_queue_holds_are_not_told_to_come_again() -> None:
    with pytest.raises(CapacityError, match="3 continuations"):
        make_engine(max_waiting=2).submit(request(n=3))


class Sink:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.ends: list[tuple[str, Exception | None]] = []
        self.stop_after: int | None = None

    def prompt(self, seq: Seq, picks: Sequence[Pick]) -> None: ...

    def tokens(self, seq: Seq, picks: Sequence[Pick]) -> int | None:
        self.got += [p.token for p in picks]
        if self.stop_after is not None and len(self.got) >= self.stop_after:
            return len(picks) - (len(self.got) - self.stop_after)
        return None

    def finish(self, seq: Seq, reason: str, error: Exception | None) -> None:
        self.ends.append((reason, error))


@pytest.mark.parametrize("proposer", [None, Ngram(k=5)], ids=repr)
def test_stop_tokens_and_early_stops_end_the_text_exactly_there(proposer: Ngram | None) -> None:
    text = expected(request(max_tokens=40))
    requests = [request(max_tokens=40, stop_ids=frozenset([text[3]])), request(max_tokens=40)]
    sinks = [Sink(), Sink()]
    sinks[1].stop_after = 17
    engine = make_engine(proposer=proposer)
    seqs = run_load(engine, [0.0, 0.0], requests, sinks)
    assert outputs(seqs) == [text[:4], text[:17]]
    assert [sink.ends for sink in sinks] == [[("stop", None)], [("stop", None)]]
    assert_clean(engine)


def test_cancelled_sequences_give_back_their_blocks_wherever_they_are() -> None:
    engine = make_engine(blocks=16)
    sinks = [Sink() for _ in range(6)]

    async def main() -> None:
        seqs = [engine.submit(request([i] * 8, max_tokens=30, n=1 + i % 2), sinks[i]) for i in range(6)]
        await engine.kernel.sleep(0.0305)
        for group in seqs:
            engine.cancel(group)
        await engine.drained()

    engine.kernel.spawn(engine.run())
    engine.kernel.run(main())
    assert_clean(engine)
    assert all(reason == "cancelled" for sink in sinks for reason, _ in sink.ends)
    assert sum(len(sink.ends) for sink in sinks) == 9


def test_a_step_that_fails_ends_its_sequences_with_the_error_and_no_others() -> None:
    engine = make_engine(Sarathi(chunk=4))
    run, failing = engine.runner.run, LightworkError("the device is gone")

    async def flaky(step: Step) -> object:
        if any(chunk.seq.id == 1 for chunk in step.chunks):
            raise failing
        return await run(step)

    engine.runner.run = flaky  # type: ignore[method-assign, assignment]
    sinks = [Sink(), Sink(), Sink()]
    run_load(engine, [0.0, 0.05, 0.1], [request(max_tokens=3)] * 3, sinks)
    assert [sink.ends for sink in sinks] == [[("length", None)], [("error", failing)], [("length", None)]]
    assert_clean(engine)


def test_a_sink_that_raises_ends_its_own_sequence_only() -> None:
    class Broken(Sink):
        def tokens(self, seq: Seq, picks: Sequence[Pick]) -> int | None:
            raise ValueError("no such character")

    sinks = [Broken(), Sink()]
    engine = make_engine()
    seqs = run_load(engine, [0.0, 0.0], [request(max_tokens=4)] * 2, sinks)
    assert [sink.ends[0][0] for sink in sinks] == ["error", "length"]
    assert outputs(seqs)[1] == expected(seqs[1].request)
    assert_clean(engine)


def test_an_engine_whose_queue_is_cancelled_is_drained() -> None:
    engine = make_engine()

    async def main() -> None:
        waiting = [engine.submit(request(n=2)) for _ in range(3)]
        drained = engine.kernel.spawn(engine.drained())
        await engine.kernel.sleep(0.0)
        for seqs in waiting:
            engine.cancel(seqs)
        await drained

    engine.kernel.run(main())
    assert_clean(engine)


class Idle:
    def init(self) -> None:
        return None

    def plan(self, state: None, view: View) -> Step:
        return Step(chunks=[])


def test_a_scheduler_that_does_nothing_is_named_and_every_caller_is_told() -> None:
    engine, sink = make_engine(Idle()), Sink()
    engine.submit(request(), sink)
    with pytest.raises(InvariantError, match="planned nothing"):
        engine.kernel.run(engine.run())
    assert sink.ends[0][0] == "error"


REQUESTS = st.builds(
    request,
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=24),
    max_tokens=st.integers(1, 12),
    n=st.integers(1, 3),
    stop_ids=st.frozensets(st.integers(0, 49), max_size=2),
)


SCHEDULES = given(
    load=st.lists(st.tuples(st.floats(0, 0.1), REQUESTS), min_size=1, max_size=14),
    scheduler=st.sampled_from(SCHEDULERS),
    blocks=st.integers(16, 40),
    depth=st.integers(1, 3),
    ahead_s=st.sampled_from([None, 1e-4]),
    max_seqs=st.integers(1, 8),
    k=st.integers(0, 6),
    hang_ups=st.lists(st.tuples(st.floats(0, 0.3), st.integers(0, 13)), max_size=5),
)


def check_schedule(
    load: list[tuple[float, Request]],
    scheduler: Scheduler[Any],
    blocks: int,
    depth: int,
    ahead_s: float | None,
    max_seqs: int,
    k: int,
    hang_ups: list[tuple[float, int]],
) -> None:
    engine = make_engine(
        scheduler,
        blocks=blocks,
        depth=depth,
        ahead_s=ahead_s,
        max_seqs=max_seqs,
        proposer=Ngram(k=k) if k else None,
    )
    load = sorted(load, key=lambda item: item[0])
    groups: list[list[Seq]] = []

    def hang_up(i: int) -> None:
        if i < len(groups):
            engine.cancel(groups[i])

    async def main() -> None:
        for at_s, i in hang_ups:
            engine.kernel.at(at_s, hang_up, i)
        for at_s, req in load:
            await engine.kernel.sleep(max(0.0, at_s - engine.kernel.now()))
            groups.append(engine.submit(req))
            engine.kv.check()
        await engine.drained()

    engine.kernel.spawn(engine.run())
    engine.kernel.run(main())
    assert_clean(engine)
    for (_, req), seqs in zip(load, groups, strict=True):
        for seq in seqs:
            text = expected(req)
            assert seq.finished in ("stop", "length", "cancelled")
            ends = [i for i, token in enumerate(text) if token in req.stop_ids]
            whole = text[: ends[0] + 1] if ends else text
            got = seq.tokens[seq.prompt_len :]
            assert got == (whole if seq.finished != "cancelled" else whole[: len(got)])


@settings(max_examples=120, deadline=None)
@SCHEDULES
def test_no_schedule_loses_leaks_or_changes_anything(**schedule: Any) -> None:
    check_schedule(**schedule)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@SCHEDULES
def test_ten_thousand_schedules(**schedule: Any) -> None:
    check_schedule(**schedule)


def test_the_same_load_gives_the_same_decisions() -> None:
    def once() -> list[tuple[str, object]]:
        engine = make_engine(Sarathi(chunk=8), blocks=20, proposer=Ngram())
        run_load(engine, [0.001 * i for i in range(10)], [request([i] * 5, max_tokens=20) for i in range(10)])
        assert engine.kernel.trace is not None
        return decisions(engine.kernel.trace)

    assert once() == once()


def test_the_tests_own_model_is_a_function_of_the_text() -> None:
    engine = make_engine()
    (seq,) = engine.submit(request([3, 4], max_tokens=3))
    assert [next_token(seq, p) for p in (2, 3, 4)] == expected(seq.request)
