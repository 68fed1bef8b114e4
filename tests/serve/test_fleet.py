"""Several engines behind a router: the same texts, nothing lost, nothing kept, one transfer per request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest
from engines import expected, make_engine, request
from hypothesis import given, settings
from hypothesis import strategies as st

from lightwork.errors import CapacityError, InvariantError, LightworkError
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.fleet import Fleet
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.loads.poisson import Poisson
from lightwork.serve.plan import Plan, Setting, of_engines
from lightwork.serve.routers import Member, Router, Seat
from lightwork.serve.routers.prefill_decode import PrefillDecode
from lightwork.serve.routers.replicas import Replicas
from lightwork.serve.schedulers.prefill_first import PrefillFirst
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load, simulate

ROUTERS: list[Router[Any]] = [Replicas(copies=3), PrefillDecode(), PrefillDecode(prefill=2, decode=2)]


def make_fleet(router: Router[Any], scheduler: Any = None, **engine: Any) -> Fleet:
    kernel, ids = Kernel(trace=Trace("test")), count()
    made = [
        make_engine(scheduler, kernel=kernel, name=f"engine {i}", ids=ids, **engine)
        for i in range(len(router.seats()))
    ]
    return Fleet(made, router)


def spans(fleet: Fleet, kind: str) -> list[Span]:
    assert fleet.kernel.trace is not None
    return [span for span in fleet.kernel.trace.spans if span.kind == kind]


def assert_clean(fleet: Fleet) -> None:
    for engine in fleet.engines:
        engine.kv.check()
        assert engine.kv.free == engine.kv.total
    assert fleet.members == [Member()] * len(fleet.engines)


@pytest.mark.parametrize("router", ROUTERS, ids=repr)
@pytest.mark.parametrize("scheduler", [Sarathi(chunk=16), PrefillFirst(max_tokens=20)], ids=repr)
def test_texts_are_those_of_one_engine(router: Router[Any], scheduler: Any) -> None:
    load = [request(range(i, i + 3 + i % 9), max_tokens=1 + i % 13, n=1 + i % 2) for i in range(40)]
    fleet = make_fleet(router, scheduler, blocks=24)
    seqs = run_load(fleet, [0.002 * i for i in range(40)], load)
    assert [seq.tokens[seq.prompt_len :] for seq in seqs] == [expected(r) for r in load for _ in range(r.n)]
    assert len({seq.id for seq in seqs}) == 60
    assert_clean(fleet)


def test_replicas_share_the_load() -> None:
    fleet = make_fleet(Replicas(copies=3))
    run_load(fleet, [0.0] * 30, [request(range(8), max_tokens=8)] * 30)
    assert Counter(span.rank for span in spans(fleet, "arrive")) == {f"engine {i}": 10 for i in range(3)}


def test_prompts_and_decodes_never_meet_and_keys_move_once() -> None:
    load = [request(range(i, i + 30), max_tokens=20) for i in range(12)]
    fleet = make_fleet(PrefillDecode(), Sarathi(chunk=16), blocks=400)
    run_load(fleet, [0.01 * i for i in range(12)], load)
    pulls = spans(fleet, "pull")
    assert sorted(int(span.name) for span in pulls) == list(range(12))
    assert all(span.args == {"tokens": 30} for span in pulls)
    assert all(span.end_s - span.start_s >= 30 * 1e-4 for span in pulls)
    for step in spans(fleet, "step"):
        assert step.args is not None
        for _, start, rows, _, _ in step.args["chunks"]:
            assert (rows == 1 and start >= 30) == (step.rank == "engine 1")


def test_a_request_of_one_token_moves_nothing() -> None:
    fleet = make_fleet(PrefillDecode())
    run_load(fleet, [0.0], [request(range(9), max_tokens=1)])
    assert not spans(fleet, "pull")
    assert_clean(fleet)


def test_prefill_memory_is_the_buffer_when_the_decode_engine_is_full() -> None:
    """Room for two sequences at the decode engine: prompts wait where they were computed, and hold it up."""
    load = [request(range(i, i + 16), max_tokens=16) for i in range(10)]
    fleet = make_fleet(PrefillDecode(), blocks=18)
    seqs = run_load(fleet, [0.0] * 10, load)
    assert [seq.tokens[16:] for seq in seqs] == [expected(r) for r in load]
    admitted = [span.start_s for span in spans(fleet, "admit") if span.rank == "engine 0"]
    assert admitted[-1] > admitted[0]
    assert_clean(fleet)


def test_a_transfer_that_fails_ends_its_own_request_only() -> None:
    fleet = make_fleet(PrefillDecode())
    runner, broken = fleet.engines[1].runner, LightworkError("the link is down")
    pull = runner.pull

    def flaky(other: Any, src: Sequence[int], dst: Sequence[int], num_tokens: int) -> Any:
        if num_tokens == 7:
            raise broken
        return pull(other, src, dst, num_tokens)

    runner.pull = flaky  # type: ignore[method-assign]
    load = [request(range(n), max_tokens=5) for n in (6, 7, 8)]
    seqs = run_load(fleet, [0.0] * 3, load)
    assert [seq.finished for seq in seqs] == ["length", "error", "length"]
    assert_clean(fleet)


@settings(max_examples=60, deadline=None)
@given(
    router=st.sampled_from(ROUTERS),
    sizes=st.lists(st.tuples(st.integers(1, 24), st.integers(1, 12)), min_size=1, max_size=12),
    hang_ups=st.lists(st.tuples(st.floats(0, 0.3), st.integers(0, 11)), max_size=8),
    blocks=st.integers(12, 40),
)
def test_hanging_up_anywhere_leaves_nothing_behind(
    router: Router[Any], sizes: list[tuple[int, int]], hang_ups: list[tuple[float, int]], blocks: int
) -> None:
    fleet = make_fleet(router, Sarathi(chunk=8), blocks=blocks)
    seqs: list[Seq] = []

    def hang_up(i: int) -> None:
        fleet.cancel(seqs[i : i + 1])

    async def main() -> None:
        for at_s, i in hang_ups:
            fleet.kernel.at(at_s, hang_up, i)
        for i, (prompt, output) in enumerate(sizes):
            await fleet.kernel.sleep(0.003)
            seqs.extend(fleet.submit(request(range(i, i + prompt), max_tokens=output)))
        await fleet.drained()

    fleet.kernel.spawn(fleet.run())
    fleet.kernel.run(main())
    for seq, (prompt, output) in zip(seqs, sizes, strict=True):
        text = expected(request(range(prompt), max_tokens=output)) if seq.finished == "length" else None
        assert text is None or len(seq.tokens) == prompt + output
    assert_clean(fleet)


class Wrong:
    def seats(self) -> list[Seat]:
        return [Seat(), Seat()]

    def init(self) -> None:
        return None

    def place(self, state: None, seq: Seq, members: Sequence[Member]) -> int:
        return 7

    def next(self, state: None, seq: Seq, at: int, members: Sequence[Member]) -> int:
        return at


def test_a_router_that_chooses_nobody_is_named() -> None:
    with pytest.raises(InvariantError, match="chose engine 7"):
        make_fleet(Wrong()).submit(request())


LOAD = Poisson(rate=6.0, num_requests=40, lengths=Lognormal(prompt=600, output=60))


def test_a_cluster_is_divided_among_the_engines() -> None:
    plan = Plan(model="shape:llama-3-8b", on="sim:a100x4", use=["PrefillDecode(prefill_tp=2)"])
    run = simulate(plan, LOAD)
    sizes = {s.name: s.value for s in run.settings if s.name.endswith(("tp", "pp"))}
    assert sizes == {"engine 0 tp": "2", "engine 1 tp": "2", "pp": "1"}
    assert run.summary.num_finished == 40
    with pytest.raises(CapacityError, match="take 6 devices"):
        simulate(Plan(model="shape:llama-3-8b", on="sim:a100x4", use=["PrefillDecode(prefill_tp=4)"]), LOAD)


def test_a_setting_is_told_once_with_the_engines_that_have_it() -> None:
    same, few, one = (Setting(name, "1", "as asked") for name in ("tp", "pp", "kv_blocks"))
    told = of_engines([[same, few], [same, few], [same, one], [same, few]])
    assert [s.name for s in told] == ["tp", "engines 0, 1, 3 pp", "engine 2 kv_blocks"]
    assert [s.name for s in of_engines([[same], [few], [few]])] == ["engine 0 tp", "engines 1-2 pp"]


def test_a_simulation_tells_how_far_it_is() -> None:
    told: list[tuple[str, int, int]] = []
    simulate(Plan(model="shape:llama-3-8b", on="sim:a100"), LOAD, progress=lambda *now: told.append(now))
    total = len(LOAD.arrivals(Kernel().rng("load")))
    assert told == [("simulate", done + 1, total) for done in range(total)]


def test_prompts_elsewhere_do_not_stall_decodes() -> None:
    gaps = {
        router: simulate(Plan(model="shape:llama-3-8b", on="sim:a100x2", use=[router, "PrefillFirst"]), LOAD)
        for router in ("Replicas()", "PrefillDecode()")
    }
    together, apart = (run.summary.tbt_max_s for run in gaps.values())
    assert apart < together / 2
