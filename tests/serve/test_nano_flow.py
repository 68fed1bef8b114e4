"""NanoFlow: who is admitted, what is learnt from outputs that ended, and steps by a pipeline."""

from __future__ import annotations

import pytest
from engines import expected, make_engine, request

from lightwork.cluster import CostModel, parse_place
from lightwork.errors import RangeError
from lightwork.models.presets import preset
from lightwork.parallel.op_plan import OpPlan, serial_plan
from lightwork.parallel.operator_times import OperatorTimes
from lightwork.plan.nano import Found, Layers, search
from lightwork.serve.cost import ClusterCost
from lightwork.serve.engine import Engine
from lightwork.serve.overlap_cost import OverlapCost
from lightwork.serve.schedulers import Chunk, Step
from lightwork.serve.schedulers.nano_flow import NanoFlow
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Request
from lightwork.serve.simulate import run_load

SMALL = Sarathi(chunk=16)


def most_running(engine: Engine, first: int = 0) -> int:
    assert engine.kernel.trace is not None
    steps = [s.args for s in engine.kernel.trace.spans if s.kind == "step" and s.args]
    return max(args["running"] for args in steps[first:])


def ends_after(prompt: list[int], num: int, **settings: object) -> Request:
    """A request that stops after `num` (at most five) tokens, whatever its limit."""
    asked = request(prompt, **settings)
    return request(prompt, stop_ids=frozenset({expected(asked, num)[-1]}), **settings)


def test_nobody_is_preempted_where_the_rule_of_the_inner_scheduler_preempts() -> None:
    requests = [request([i, i + 1, i + 2], max_tokens=30) for i in range(12)]
    preempted = []
    for scheduler in (SMALL, NanoFlow(inner=SMALL)):
        engine = make_engine(scheduler, blocks=24)
        seqs = run_load(engine, [0.0] * len(requests), requests)
        assert [seq.tokens[3:] for seq in seqs] == [expected(r) for r in requests]
        preempted.append(sum(seq.num_preempted for seq in seqs))
    assert preempted[0] > preempted[1] == 0


def test_as_many_are_admitted_as_outputs_were_long_so_far() -> None:
    """All may become 60 tokens long, and end after four."""
    requests = [ends_after([i, 50 - i], 4, max_tokens=60) for i in range(60)]
    engine = make_engine(NanoFlow(inner=SMALL, output=60), blocks=32, prefix_cache=False)
    seqs = run_load(engine, [0.0] * len(requests), requests)
    assert all(seq.num_output == 4 for seq in seqs)
    trace = engine.kernel.trace
    assert trace is not None
    early = [s.args["running"] for s in trace.spans if s.kind == "step" and s.args][:4]
    assert max(early) <= 32 * 4 // 60
    assert most_running(engine, first=4) >= 8


def test_outputs_longer_than_foreseen_are_computed_all_the_same() -> None:
    requests = [request([i, i + 1], max_tokens=40) for i in range(8)]
    engine = make_engine(NanoFlow(inner=SMALL, output=1, memory=1.0), blocks=20)
    seqs = run_load(engine, [0.0] * len(requests), requests)
    assert sum(seq.num_preempted for seq in seqs) > 0
    assert [seq.tokens[2:] for seq in seqs] == [expected(r) for r in requests]
    engine.kv.check()
    assert engine.kv.free == engine.kv.total


def test_who_needs_more_than_the_limit_runs_alone() -> None:
    requests = [request(range(20), max_tokens=20), request([1], max_tokens=2)]
    engine = make_engine(NanoFlow(inner=SMALL, memory=0.1), blocks=16)
    seqs = run_load(engine, [0.0, 0.0], requests)
    assert [seq.num_output for seq in seqs] == [20, 2]
    assert most_running(engine) == 1


def test_batches_are_full_while_there_is_work() -> None:
    requests = [request([i] * 8, max_tokens=8) for i in range(64)]
    engine = make_engine(NanoFlow(inner=SMALL), blocks=400, prefix_cache=False)
    run_load(engine, [0.0] * len(requests), requests)
    assert engine.kernel.trace is not None
    steps = [s.args for s in engine.kernel.trace.spans if s.kind == "step" and s.args]
    assert all(sum(chunk[2] for chunk in args["chunks"]) == 16 for args in steps if args["waiting"])


@pytest.mark.parametrize("fields", [{"output": 0}, {"memory": 0.0}, {"memory": 1.5}])
def test_impossible_values_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(RangeError, match="NanoFlow cannot run"):
        NanoFlow(**fields)  # type: ignore[arg-type]


# -- steps by a pipeline

SPEC, COSTS = preset("llama-3-8b"), CostModel(parse_place("sim:a100"))
CHUNKS = [(2000, 1)] * 512 + [(0, 512)]


@pytest.fixture(scope="module")
def found() -> Found:
    times = OperatorTimes(SPEC, COSTS, CHUNKS, dtype="bfloat16")
    sharing = COSTS.cluster.device.sharing
    return search(Layers(rows=1024, num_layers=SPEC.num_layers, alone=times, sharing=sharing))


def cost(pipeline: OpPlan, step_s: float = 0.0) -> OverlapCost:
    return OverlapCost(SPEC, COSTS, pipeline, dtype="bfloat16", step_s=step_s)


def test_the_layers_of_a_step_take_as_long_as_their_pipeline(found: Found) -> None:
    assert not found.plan.is_serial
    assert cost(found.plan).layers_s(CHUNKS) == pytest.approx(found.seconds)
    assert cost(serial_plan(1024)).layers_s(CHUNKS) == pytest.approx(found.serial_s)


def test_one_operator_after_another_is_the_cost_of_the_cluster() -> None:
    engine = make_engine()
    (seq,) = engine.submit(request(range(100), max_tokens=1))
    step = Step(chunks=[Chunk(seq, 0, 100)])
    plain = ClusterCost(SPEC, COSTS, dtype="bfloat16", step_s=0.001)
    assert cost(serial_plan(1024), 0.001).stages(step) == pytest.approx(plain.stages(step), rel=1e-3)


@pytest.mark.parametrize("rows", [1, 7, 129, 600, 1500])
def test_no_step_is_slower_than_one_operator_after_another(found: Found, rows: int) -> None:
    for chunks in ([(0, rows)], [(1000, 1)] * rows):
        assert cost(found.plan).layers_s(chunks) <= cost(serial_plan(rows)).layers_s(chunks)


def test_an_engine_serves_the_same_in_less_time() -> None:
    def alone(operator: str, rows: int) -> float:
        return rows * (8e-6 if operator == "decode" else 2e-6)

    sharing = COSTS.cluster.device.sharing
    found = search(Layers(rows=256, num_layers=SPEC.num_layers, alone=alone, sharing=sharing))
    requests = [request([i] * 8, max_tokens=8) for i in range(300)]
    ends, texts = [], []
    for pipeline in (found.plan, serial_plan(256)):
        engine = make_engine(NanoFlow(inner=Sarathi(chunk=256)), blocks=2000, max_seqs=300)
        engine.runner.cost = OverlapCost(  # type: ignore[attr-defined]
            SPEC, COSTS, pipeline, dtype="bfloat16", times=lambda chunks: alone
        )
        texts.append([seq.tokens for seq in run_load(engine, [0.0] * len(requests), requests)])
        ends.append(engine.kernel.now())
    assert texts[0] == texts[1]
    assert ends[0] < 0.95 * ends[1]
