"""Engines as Ray actors: the same texts as of processes, and an actor that dies is a process that is lost."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from secrets import token_hex
from typing import Any

import numpy as np
import pytest

from lightwork.errors import LightworkError, MissingExtraError, SpecError
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.embedding import Text
from lightwork.serve.fleet import Fleet
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load

LOAD = [Request(prompt=tuple(range(10 + i, 40 + 3 * i)), max_tokens=24) for i in range(12)]
Die = Callable[[Any], None]


def outputs(seqs: list[Seq]) -> list[list[int]]:
    return [seq.tokens[seq.prompt_len :] for seq in seqs]


def test_a_cluster_that_is_not_there_is_named() -> None:
    pytest.importorskip("ray")
    with pytest.raises(SpecError, match="Ray cannot be reached at 'nowhere'"):
        open_engine(Plan(on="ray:nowhere", use=("Replicas(copies=2)",)), Kernel(WallClock()))


def test_without_ray_the_install_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'(?s)ray is not installed.*pip install "lightwork\[ray\]"'):
        open_engine(Plan(on="ray:", use=("Replicas(copies=2)",)), Kernel(WallClock()))


def lose(fleet: Fleet, die: Callable[[], object], then: Callable[[], object] = bool) -> list[Seq]:
    """Serve the load, in the middle of which something dies, until every engine serves again."""
    kernel, seqs = fleet.kernel, list[Seq]()

    def all_serve() -> bool:
        return all(engine.serving for engine in fleet.engines)

    async def main() -> None:
        for request in LOAD:
            seqs.extend(fleet.submit(request))
        while sum(seq.num_output for seq in seqs) < 40:
            await kernel.sleep(0.001)
        lines = [engine._line for engine in fleet.engines]
        die()
        await fleet.drained()
        while all_serve() and lines == [engine._line for engine in fleet.engines]:
            await kernel.sleep(0.01)
        then()
        while not all_serve():
            await kernel.sleep(0.01)

    serving = kernel.spawn(fleet.run())
    kernel.run(main())
    serving.cancel()
    return seqs


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """What one engine says."""
    engine, model, _ = open_engine(Plan(max_len=512, prefix_cache=False), Kernel(WallClock()))
    try:
        return outputs(run_load(engine, [0.0] * len(LOAD), LOAD))
    finally:
        model.close()


@pytest.mark.slow
def test_a_machine_of_a_cluster_that_is_lost_loses_no_request(
    expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of one core each, as Ray sees them; the engine starts again on one that comes instead."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("RAY_AUTH_TOKEN", token_hex(32))
    node = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    doomed = cluster.add_node(**node)
    on = f"ray:{cluster.address}"
    try:
        with pytest.raises(
            LightworkError, match="engine 0 did not start: CheckpointError: there is no folder"
        ):
            open_engine(Plan(model="hf:./nowhere", on=on, use=("PrefillDecode()",)), Kernel(WallClock()))
        with pytest.raises(SpecError, match="3 engines on 2 cores"):
            open_engine(Plan(on=on, use=("Replicas(copies=3)",)), Kernel(WallClock()))
        plan = Plan(on=on, use=("PrefillDecode()",), max_len=512, prefix_cache=False)
        fleet, model, _ = open_engine(plan, Kernel(WallClock()))
        assert isinstance(fleet, Fleet)
        assert outputs(run_load(fleet, [0.0] * len(LOAD), LOAD)) == expected
        assert outputs(lose(fleet, doomed.kill_all_processes, lambda: cluster.add_node(**node))) == expected
        assert outputs(run_load(fleet, [0.0] * len(LOAD), LOAD)) == expected
        model.close()
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """A prefill and a decode engine; starting Ray takes four seconds, so once for all tests."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", token_hex(32))  # without one, Ray keeps one in the user's home
        kernel = Kernel(WallClock(), trace=Trace("real: ray"))
        plan = Plan(on="ray:", use=("PrefillDecode()",), max_len=512, prefix_cache=False)
        fleet, model, _ = open_engine(plan, kernel)
        assert isinstance(fleet, Fleet)
        yield fleet
        model.close()
        assert not ray.is_initialized()


def test_texts_are_those_of_one_engine_and_keys_move_by_memory(
    fleet: Fleet, expected: list[list[int]]
) -> None:
    seqs = run_load(fleet, [0.002 * i for i in range(len(LOAD))], LOAD)
    assert outputs(seqs) == expected
    assert fleet.kernel.trace is not None
    pulled = Counter(span.name for span in fleet.kernel.trace.spans if span.kind == "pull")
    assert pulled == {str(seq.id): 1 for seq in seqs}
    assert all(seq.arrived_s <= seq.started_s <= seq.finished_s for seq in seqs if seq.started_s)


def test_texts_are_embedded_by_actors_as_by_one_process(fleet: Fleet) -> None:
    alone, model, _ = open_engine(Plan(max_len=512), Kernel(WallClock()))
    for request in LOAD[:3]:
        text = Text(request.prompt)
        ours, theirs = (engine.kernel.run(engine.embed(text)) for engine in (fleet, alone))
        assert np.abs(ours - theirs).max() < 1e-5
    model.close()


def kill(actor: Any) -> None:
    """By Ray."""
    actor.kill()


def kill_process(actor: Any) -> None:
    """Behind Ray's back."""
    os.kill(actor.pid, signal.SIGKILL)


@pytest.mark.parametrize(("victim", "die"), [(0, kill_process), (1, kill)], ids=["prefill", "decode"])
def test_an_actor_that_dies_loses_no_request_and_is_started_again(
    fleet: Fleet, expected: list[list[int]], victim: int, die: Die
) -> None:
    pid = fleet.engines[victim].child.process.pid
    assert outputs(lose(fleet, lambda: die(fleet.engines[victim].child.process))) == expected
    assert fleet.engines[victim].child.process.pid != pid
    assert outputs(run_load(fleet, [0.0] * len(LOAD), LOAD)) == expected
