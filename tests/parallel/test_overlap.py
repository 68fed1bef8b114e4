"""Nano-operations on shares of a simulated device, against times by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipelines import SHARES, pipeline, random_pipeline

from lightwork.cluster import CostModel, parse_place
from lightwork.models.presets import preset
from lightwork.models.work import forward_work
from lightwork.parallel import overlap
from lightwork.parallel.op_plan import NanoOp, OpPlan, serial_plan
from lightwork.parallel.operator_times import OperatorTimes
from lightwork.parallel.overlap import SharedDevice, carry_out, seconds_of, speed_on
from lightwork.runtime.kernel import Kernel

SHARING = {"memory": ((0.0, 0.0), (0.4, 0.8), (1.0, 1.0)), "network": ((0.0, 0.0), (0.3, 0.6), (1.0, 1.0))}
PER_ROW = {"qkv": 2.0, "decode": 4.0, "prefill": 0.0, "out_parts": 1.0, "up": 3.0, "down": 2.0}


def alone(operator: str, rows: int) -> float:
    return PER_ROW.get(operator, 1.5) * rows


def carried_out(plan: OpPlan, layers: int) -> float:
    """Every layer, none extrapolated."""
    kernel = Kernel()
    kernel.run(carry_out(plan, layers, SharedDevice(kernel, plan, alone, SHARING).do))
    return kernel.now()


def test_one_after_another_takes_the_sum() -> None:
    assert seconds_of(serial_plan(10), 3, alone, SHARING) == 3 * 12.0 * 10
    two = pipeline(
        [
            NanoOp(name, a, b)
            for a, b in ((0, 4), (4, 10))
            for name in ("qkv", "decode", "prefill", "out_parts", "up", "down")
        ],
        10,
    )
    one_lane = OpPlan(
        rows=10, operators=two.operators, ops=tuple(op._replace(lane="all", share=1.0) for op in two.ops)
    )
    assert seconds_of(one_lane, 3, alone, SHARING) == pytest.approx(3 * 12.0 * 10)


def test_beside_others_each_is_as_slow_as_its_share_says() -> None:
    """Two ranges of one row. Times by hand:

    qkv 0 to 2; decode 2 to 7 on 0.4, four fifths as fast, beside the second qkv on 0.6, to 2 + 2 / 0.6;
    the second decode follows, 7 to 12, beside the first's out, up and down: three of its six seconds by 12,
    the rest alone to 15; then the second's six.
    """
    names = ("out_parts", "up", "down")
    ops = [NanoOp(name, i, i + 1) for name in ("qkv", "decode", "prefill") for i in range(2)]
    plan = pipeline([*ops, *(NanoOp(name, i, i + 1) for i in range(2) for name in names)], 2)
    assert carried_out(plan, 1) == pytest.approx(21.0)
    assert seconds_of(plan, 1, alone, SHARING) == pytest.approx(21.0)
    assert seconds_of(serial_plan(2), 1, alone, SHARING) == 24.0


def test_interference_makes_overlap_lose() -> None:
    """Where kernels are no faster than their share, there is nothing to gain."""
    ops = [NanoOp(name, i, i + 1) for name in ("qkv", "decode", "prefill") for i in range(2)]
    ops += [NanoOp(name, i, i + 1) for i in range(2) for name in ("out_parts", "up", "down")]
    plan = pipeline(ops, 2)
    assert seconds_of(plan, 40, alone, {}) >= seconds_of(serial_plan(2), 40, alone, {}) * (1 - 1e-9)


@given(seed=st.integers(0, 1 << 30), tp=st.sampled_from([1, 2]))
def test_no_plan_is_faster_than_its_busiest_resource_or_slower_than_all_on_their_shares(
    seed: int, tp: int
) -> None:
    plan = random_pipeline(seed, 16, tp)
    spent = dict.fromkeys(SHARES, 0.0)
    for op in plan.ops:
        resource = plan.operator(op).resource
        share = 1.0 if resource == "compute" else op.share
        spent[resource] += alone(op.operator, op.stop - op.start) / speed_on(share, resource, SHARING)
    held = sum(SHARES[name] * spent[name] for name in ("memory", "network"))
    least = max(spent["compute"] + held, *spent.values())
    assert carried_out(plan, 1) >= least * (1 - 1e-9)
    assert carried_out(plan, 1) <= (sum(spent.values()) + held) * (1 + 1e-9)


@given(seed=st.integers(0, 1 << 30))
def test_many_layers_go_on_at_the_pace_of_the_first(seed: int) -> None:
    plan = random_pipeline(seed, 16, 2)
    whole = carried_out(plan, 24)
    assert seconds_of(plan, 24, alone, SHARING) == pytest.approx(whole, rel=0.02)


def test_a_layer_begins_before_the_one_before_has_ended() -> None:
    plan = random_pipeline(3, 16, 2)
    assert overlap.WARM_LAYERS > 2
    assert carried_out(plan, 2) < 2 * carried_out(plan, 1)


@pytest.mark.parametrize(("name", "tp"), [("llama-2-70b", 8), ("llama-3-8b", 1), ("mixtral-8x7b", 2)])
def test_operators_one_after_another_are_the_forward_as_priced(name: str, tp: int) -> None:
    spec, costs = preset(name), CostModel(parse_place("sim:a100x8"))
    chunks = [(900, 1)] * 1000 + [(100, 512), (0, 536)]
    times = OperatorTimes(spec, costs, chunks, dtype="bfloat16", tp=tp)
    exchange_s = costs.collective_seconds("all_reduce", range(tp), 2048 * spec.hidden_size * 2)
    whole = costs.seconds(forward_work(spec, chunks, 0, dtype="bfloat16", tp=tp))
    whole += 2 * spec.num_layers * exchange_s
    assert seconds_of(serial_plan(2048, tp), spec.num_layers, times, {}) == pytest.approx(whole, rel=1e-3)
