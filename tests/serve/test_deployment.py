"""Engines as processes of this machine: the same texts, one transfer per request, and none lost with a
process."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lightwork.decode.sampling import Pick
from lightwork.errors import LightworkError, SpecError
from lightwork.runtime import heartbeat
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.line import Link
from lightwork.runtime.trace import Span, Trace
from lightwork.serve import remote
from lightwork.serve.deployment import open_deployment
from lightwork.serve.fleet import Fleet
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")

LOAD = [Request(prompt=tuple(range(10 + i, 40 + 3 * i)), max_tokens=24) for i in range(12)]


@pytest.fixture
def opened() -> Iterator[Callable[..., Fleet]]:
    """Opens fleets on the built-in model, and ends their processes."""
    models: list[Any] = []

    def make(*use: object, link: Link | None = None, shares: bool = True, **plan: Any) -> Fleet:
        kernel = Kernel(WallClock(), trace=Trace("real: processes"))
        settings = {"max_len": 512, **plan}
        fleet, model, _ = open_deployment(Plan(use=use, **settings), kernel, link=link, shares=shares)
        models.append(model)
        return fleet

    yield make
    for model in models:
        model.close()
    for model in models:
        assert [engine.child.process.poll() is not None for engine in model.engines] == [True] * len(
            model.engines
        )


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """What one engine says."""
    kernel = Kernel(WallClock())
    engine, model, _ = open_engine(Plan(max_len=512, prefix_cache=False), kernel)
    try:
        return outputs(run_load(engine, [0.0] * len(LOAD), LOAD))
    finally:
        model.close()


def outputs(seqs: list[Seq]) -> list[list[int]]:
    return [seq.tokens[seq.prompt_len :] for seq in seqs]


def spans(fleet: Fleet, kind: str) -> list[Span]:
    assert fleet.kernel.trace is not None
    return [span for span in fleet.kernel.trace.spans if span.kind == kind]


def assert_idle(fleet: Fleet) -> None:
    """Nothing is with anybody, and what a new request finds is all there: the blocks have come back."""
    assert [member.requests for member in fleet.members] == [0] * len(fleet.members)
    seqs = run_load(fleet, [0.0], [LOAD[0]])
    assert seqs[0].finished == "length"
    usage = [span.args["kv_usage"] for span in spans(fleet, "step")[-LOAD[0].max_tokens :] if span.args]
    assert max(usage) <= 4 / min(engine.kv_tokens // 64 for engine in fleet.engines)


@pytest.mark.parametrize(
    "use",
    [("Replicas(copies=2)",), ("PrefillDecode()",), ("PrefillDecode()", "Quant(bits=16, kv_bits=8)")],
    ids=str,
)
def test_texts_are_those_of_one_engine(
    opened: Callable[..., Fleet], expected: list[list[int]], use: tuple[str, ...]
) -> None:
    fleet = opened(*use, prefix_cache=False)
    seqs = run_load(fleet, [0.002 * i for i in range(len(LOAD))], LOAD)
    if len(use) == 1:
        assert outputs(seqs) == expected
    assert [seq.finished for seq in seqs] == ["length"] * len(LOAD)
    assert_idle(fleet)


def test_prompts_and_decodes_are_apart_and_keys_move_once(opened: Callable[..., Fleet]) -> None:
    fleet = opened("PrefillDecode()", prefix_cache=False)
    seqs = run_load(fleet, [0.002 * i for i in range(len(LOAD))], LOAD)
    moved = {span.name: span.args for span in spans(fleet, "pull")}
    assert moved == {str(seq.id): {"tokens": seq.prompt_len} for seq in seqs}
    for step in spans(fleet, "step"):
        assert step.args is not None
        for id, start, rows, _, _ in step.args["chunks"]:
            assert (rows == 1 and start >= seqs[id].prompt_len) == (step.rank == "engine 1")
    assert Counter(span.rank for span in spans(fleet, "finish")) == {"engine 1": len(LOAD)}


@pytest.mark.parametrize(
    ("use", "victim"), [("Replicas(copies=2)", 1), ("PrefillDecode()", 1), ("PrefillDecode()", 0)]
)
def test_a_process_that_is_killed_loses_no_request(
    opened: Callable[..., Fleet], expected: list[list[int]], use: str, victim: int
) -> None:
    """In the middle of the load: what it had is computed again elsewhere, to the same text."""
    fleet = opened(use, prefix_cache=False)
    kernel, seqs = fleet.kernel, []

    async def main() -> None:
        for request in LOAD:
            seqs.extend(fleet.submit(request))
        while sum(seq.num_output for seq in seqs) < 40:
            await kernel.sleep(0.001)
        os.kill(fleet.engines[victim].child.process.pid, signal.SIGKILL)
        await fleet.drained()

    serving = kernel.spawn(fleet.run())
    kernel.run(main())
    assert outputs(seqs) == expected
    assert [member.requests for member in fleet.members] == [0, 0]
    kernel.run(all_serve(fleet))
    serving.cancel()
    assert [member.alive for member in fleet.members] == [True, True]
    again = run_load(fleet, [0.0] * len(LOAD), LOAD)
    assert outputs(again) == expected
    ids = {str(seq.id) for seq in again}
    pulled = {span.name for span in spans(fleet, "pull")} & ids
    assert pulled == (ids if use == "PrefillDecode()" else set())
    assert {span.rank for span in spans(fleet, "finish") if span.name in ids} == (
        {"engine 1"} if pulled else {"engine 0", "engine 1"}
    )


@pytest.mark.parametrize(
    ("use", "victim"), [("Replicas(copies=2)", 1), ("PrefillDecode()", 1), ("PrefillDecode()", 0)]
)
def test_a_process_that_hangs_is_killed_and_loses_no_request(
    opened: Callable[..., Fleet], expected: list[list[int]], monkeypatch: Any, use: str, victim: int
) -> None:
    """It is stopped in the middle of the load: there, but never to say anything again."""
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.2)
    fleet = opened(use, prefix_cache=False)
    kernel, seqs = fleet.kernel, []
    process = fleet.engines[victim].child.process

    async def main() -> None:
        for request in LOAD:
            seqs.extend(fleet.submit(request))
        while sum(seq.num_output for seq in seqs) < 40:
            await kernel.sleep(0.001)
        os.kill(process.pid, signal.SIGSTOP)
        await fleet.drained()
        while not spans(fleet, "lost"):  # a victim that has nothing to do is noticed, too
            await kernel.sleep(0.01)

    serving = kernel.spawn(fleet.run())
    kernel.run(main())
    kernel.run(all_serve(fleet))
    serving.cancel()
    assert outputs(seqs) == expected
    (hung,) = spans(fleet, "hung")
    assert (hung.rank, hung.name) == (f"engine {victim}", "has said nothing for 2.4 s")
    assert [(span.rank, span.name) for span in spans(fleet, "lost")] == [
        (hung.rank, "ended with exit code -9")
    ]
    assert process.wait(0) == -signal.SIGKILL
    assert outputs(run_load(fleet, [0.0] * len(LOAD), LOAD)) == expected


async def all_serve(fleet: Fleet) -> None:
    """Return when every engine has a process again."""
    while not all(engine.serving for engine in fleet.engines):
        await fleet.kernel.sleep(0.01)


def test_log_probabilities_of_a_prompt_are_told_once(opened: Callable[..., Fleet]) -> None:
    """Although the process that told some of them is lost, and the prompt is computed again."""
    fleet = opened("Replicas(copies=2)", "Sarathi(chunk=16)", prefix_cache=False)
    kernel, told = fleet.kernel, Counter[int]()

    class Told:
        def prompt(self, seq: Seq, picks: Sequence[Pick]) -> None:
            told[seq.id] += len(picks)
            if told[seq.id] > 60 and fleet.members[1].alive and seq.id == seqs[1].id:
                os.kill(fleet.engines[1].child.process.pid, signal.SIGKILL)

        def tokens(self, seq: Seq, picks: Sequence[Pick]) -> None: ...

        def finish(self, seq: Seq, reason: str, error: Exception | None) -> None: ...

    load = [Request(prompt=tuple(range(200)), max_tokens=30, prompt_logprobs=0) for _ in range(2)]
    seqs: list[Seq] = []

    async def main() -> None:
        for request in load:
            seqs.extend(fleet.submit(request, Told()))
        await fleet.drained()

    serving = kernel.spawn(fleet.run())
    kernel.run(main())
    serving.cancel()
    assert [seq.finished for seq in seqs] == ["length"] * 2
    assert told == {seq.id: 199 for seq in seqs}


def kill_all(fleet: Fleet) -> None:
    for engine in fleet.engines:
        os.kill(engine.child.process.pid, signal.SIGKILL)


@pytest.mark.parametrize("use", ["Replicas(copies=2)", "PrefillDecode()"])
def test_without_any_process_requests_wait_for_one(
    opened: Callable[..., Fleet], expected: list[list[int]], use: str
) -> None:
    """Those that had begun, and those that come before one is there."""
    fleet = opened(use, prefix_cache=False)
    kernel, seqs = fleet.kernel, []

    async def main() -> None:
        for request in LOAD[:8]:
            seqs.extend(fleet.submit(request))
        while sum(seq.num_output for seq in seqs) < 20:
            await kernel.sleep(0.001)
        kill_all(fleet)
        while any(engine.serving for engine in fleet.engines):
            await kernel.sleep(0.001)
        for request in LOAD[8:]:
            seqs.extend(fleet.submit(request))
        assert fleet.alive
        assert fleet.gauges[:2] == (0, fleet.num_unfinished)
        hung_up = fleet.submit(LOAD[0])
        fleet.cancel(hung_up)
        await fleet.drained()

    serving = kernel.spawn(fleet.run())
    kernel.run(main())
    kernel.run(all_serve(fleet))
    serving.cancel()
    assert outputs(seqs) == expected
    assert_idle(fleet)


def test_what_cannot_start_again_is_given_up(
    opened: Callable[..., Fleet], checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: Any
) -> None:
    """The model is not there any more: a few attempts, then callers are told."""
    monkeypatch.setattr(remote, "BACKOFF_S", 0.01)
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("llama"), folder)
    fleet = opened("Replicas(copies=1)", model=str(folder))
    kernel, ended = fleet.kernel, list[tuple[str, str]]()

    class Told:
        def prompt(self, seq: Seq, picks: Sequence[Pick]) -> None: ...

        def tokens(self, seq: Seq, picks: Sequence[Pick]) -> None: ...

        def finish(self, seq: Seq, reason: str, error: Exception | None) -> None:
            ended.append((reason, str(error)))

    async def main() -> None:
        shutil.rmtree(folder)
        kill_all(fleet)
        fleet.submit(LOAD[0], Told())
        await fleet.drained()

    serving = kernel.spawn(fleet.run())
    kernel.run(main())
    serving.cancel()
    (reason, why), *others = ended
    assert not others
    assert reason == "error"
    assert "engine 0: its process ended with exit code 1" in why
    assert [span.args["returning"] for span in spans(fleet, "lost") if span.args] == [True] * 3 + [False]
    assert not fleet.alive
    with pytest.raises(LightworkError, match="no engine is left"):
        fleet.submit(LOAD[0])


def test_a_request_that_kills_whoever_takes_it_ends_and_no_other_does(
    opened: Callable[..., Fleet], expected: list[list[int]], monkeypatch: Any
) -> None:
    monkeypatch.setattr(remote, "BACKOFF_S", 0.01)
    fleet = opened("Replicas(copies=2)", prefix_cache=False)
    kernel, killed = fleet.kernel, list[int]()

    class Deadly:
        def prompt(self, seq: Seq, picks: Sequence[Pick]) -> None: ...

        def tokens(self, seq: Seq, picks: Sequence[Pick]) -> None:
            engine = fleet.engines[fleet._at[seq.id]]
            if engine.child.process.pid not in killed:
                killed.append(engine.child.process.pid)
                os.kill(killed[-1], signal.SIGKILL)

        def finish(self, seq: Seq, reason: str, error: Exception | None) -> None:
            assert reason == "error"

    seqs: list[Seq] = []

    async def main() -> None:
        (deadly,) = fleet.submit(Request(prompt=tuple(range(30)), max_tokens=400), Deadly())
        while deadly.finished is None:
            await kernel.sleep(0.001)
        for request in LOAD:
            seqs.extend(fleet.submit(request))
        await fleet.drained()

    serving = kernel.spawn(fleet.run())
    kernel.run(main())
    serving.cancel()
    assert len(killed) == 3
    assert outputs(seqs) == expected


SLOW = Link(delay_s=0.03, bytes_per_s=4e6)


@pytest.mark.parametrize("link", [Link(), SLOW], ids=["a link", "a slow link"])
def test_keys_and_values_take_the_link_where_no_memory_is_shared(
    opened: Callable[..., Fleet], expected: list[list[int]], link: Link
) -> None:
    """To the same text; and whoever is slow is not taken for dead."""
    fleet = opened("PrefillDecode()", prefix_cache=False, link=link, shares=False)
    seqs = run_load(fleet, [0.002 * i for i in range(len(LOAD))], LOAD)
    assert outputs(seqs) == expected
    assert Counter(span.name for span in spans(fleet, "pull")) == {str(seq.id): 1 for seq in seqs}
    assert not spans(fleet, "lost")
    if link == SLOW:
        assert all(seq.first_token_s - seq.arrived_s > 2 * SLOW.delay_s for seq in seqs if seq.first_token_s)
    assert_idle(fleet)


@pytest.mark.parametrize("victim", [0, 1])
def test_who_is_lost_while_keys_and_values_are_on_their_way_loses_no_request(
    opened: Callable[..., Fleet], expected: list[list[int]], victim: int
) -> None:
    fleet = opened("PrefillDecode()", prefix_cache=False, link=SLOW, shares=False)
    kernel, seqs = fleet.kernel, []

    async def main() -> None:
        for request in LOAD:
            seqs.extend(fleet.submit(request))
        hung_up = fleet.submit(LOAD[0])
        while not fleet.engines[0]._readers:
            await kernel.sleep(0.001)
        fleet.cancel(hung_up)
        os.kill(fleet.engines[victim].child.process.pid, signal.SIGKILL)
        await fleet.drained()

    serving = kernel.spawn(fleet.run())
    kernel.run(main())
    kernel.run(all_serve(fleet))
    serving.cancel()
    assert outputs(seqs) == expected
    assert not fleet.engines[0]._readers
    assert not fleet.engines[0]._lent
    assert_idle(fleet)


def test_hanging_up_frees_blocks_in_every_process(opened: Callable[..., Fleet]) -> None:
    fleet = opened("PrefillDecode()", kv_bytes=1 << 20)
    kernel, seqs = fleet.kernel, []

    async def main() -> None:
        for i in range(60):
            seqs.extend(fleet.submit(LOAD[i % len(LOAD)]))
            await kernel.sleep(0.001)
            if i % 2:
                fleet.cancel(seqs[i - 1 : i])
        await fleet.drained()

    serving = kernel.spawn(fleet.run())
    kernel.run(main())
    serving.cancel()
    assert Counter(seq.finished for seq in seqs)["length"] >= 30
    assert_idle(fleet)


@pytest.mark.slow
def test_a_thousand_requests_leave_nothing_behind(opened: Callable[..., Fleet]) -> None:
    """One transfer each, and afterwards every block of both engines is free."""
    fleet = opened("PrefillDecode()", prefix_cache=False, kv_bytes=1 << 20)
    load = [Request(prompt=tuple(range(i % 50, i % 50 + 20)), max_tokens=2 + i % 7) for i in range(1000)]
    seqs = run_load(fleet, [0.0005 * i for i in range(1000)], load)
    assert {seq.finished for seq in seqs} == {"length"}
    assert Counter(span.name for span in spans(fleet, "pull")) == {str(seq.id): 1 for seq in seqs}
    assert_idle(fleet)


def test_a_model_that_is_not_there_is_told_by_the_process() -> None:
    with pytest.raises(LightworkError, match="engine 0 did not start: CheckpointError: there is no folder"):
        open_engine(Plan(model="hf:./nowhere", use=("Replicas(copies=2)",)), Kernel(WallClock()))


def test_what_processes_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="simulated only"):
        open_engine(Plan(use=("PrefillDecode(prefill_tp=2)",)), Kernel(WallClock()))
    with pytest.raises(SpecError, match="processes of this machine"):
        open_engine(Plan(on="cuda:0", use=("Replicas(copies=2)",)), Kernel(WallClock()))
