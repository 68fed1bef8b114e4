"""A plan that would compute something else, or overlap what must not, is refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipelines import pipeline, random_pipeline

from lightwork.errors import RangeError, SpecError
from lightwork.parallel.op_plan import NanoOp, OpPlan, layer_operators, serial_plan

TWO = pipeline(
    [NanoOp(name, a, b) for name in ("qkv", "decode", "prefill") for a, b in ((0, 4), (4, 10))]
    + [NanoOp(name, a, b) for a, b in ((0, 4), (4, 10)) for name in ("out_parts", "up", "down")],
    10,
)
"""Two ranges: qkv 0 and 1, decode 2 and 3, prefill 4 and 5, then 6 to 8 and 9 to 11."""


def changed(plan: OpPlan, i: int, **fields: object) -> OpPlan:
    ops = [*plan.ops]
    ops[i] = ops[i]._replace(**fields)  # type: ignore[arg-type]
    return replace(plan, ops=tuple(ops))


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("gather", [False, True])
def test_one_operator_after_another_is_a_plan(tp: int, gather: bool) -> None:
    plan = serial_plan(7, tp, gather=gather)
    assert plan.is_serial
    assert plan.lanes == ("all",)
    assert ("gather_heads" in [op.operator for op in plan.ops]) == (gather and tp > 1)


@given(seed=st.integers(0, 1 << 30), rows=st.integers(2, 40), tp=st.sampled_from([1, 2]))
def test_any_ranges_in_any_order_that_values_allow_are_a_plan(seed: int, rows: int, tp: int) -> None:
    plan = random_pipeline(seed, rows, tp)
    for value in ("qkv", "hidden"):
        given_rows = [
            r for op in plan.ops if plan.operator(op).gives == value for r in range(op.start, op.stop)
        ]
        assert sorted(given_rows) == [*range(rows)]


@given(seed=st.integers(0, 1 << 30), rows=st.integers(2, 60), tp=st.sampled_from([1, 2]))
def test_a_plan_fits_other_numbers_of_rows(seed: int, rows: int, tp: int) -> None:
    plan = random_pipeline(seed, 20, tp)
    fitted = plan.fitted(rows)
    assert fitted.rows == rows
    assert max(op.stop for op in fitted.ops) == rows
    assert plan.fitted(20) == plan


@given(seed=st.integers(0, 1 << 30), data=st.data())
def test_without_any_of_its_nano_operations_a_plan_is_refused(seed: int, data: st.DataObject) -> None:
    plan = random_pipeline(seed, 12, 2)
    gone = data.draw(st.integers(0, len(plan.ops) - 1))
    kept = [op for i, op in enumerate(plan.ops) if i != gone]
    with pytest.raises(SpecError, match="is missing for"):
        pipeline(kept, 12, 2)


@pytest.mark.parametrize(
    ("i", "fields", "error", "words"),
    [
        (0, {"stop": 3}, SpecError, "'qkv' of row 3 is missing for decode of rows 0 to 4"),
        (0, {"stop": 5}, SpecError, "'qkv' of row 4 is computed twice"),
        (11, {"stop": 9}, SpecError, "'hidden' of row 9 is missing for the layer's output"),
        (0, {"stop": 11}, RangeError, "qkv of rows 0 to 11, where there are 10"),
        (0, {"start": 4}, RangeError, "qkv of rows 4 to 4, where there are 10"),
        (
            2,
            {"after": ()},
            SpecError,
            "decode of rows 0 to 4 reads 'qkv' and does not wait for qkv of rows 0 to 4",
        ),
        (6, {"after": (4,)}, SpecError, "out_parts of rows 0 to 4 reads 'decoded' and does not wait"),
        (2, {"after": (3,)}, SpecError, r"decode of rows 0 to 4, number 2, is after \(3,\)"),
        (0, {"behind": (12,)}, SpecError, r"is after \(\) and behind \(12,\)"),
        (0, {"share": 0.0}, RangeError, "qkv of rows 0 to 4 has a share of 0"),
        (0, {"share": 1.5}, RangeError, "qkv of rows 0 to 4 has a share of 1.5"),
        (3, {"share": 0.8}, RangeError, r"and .* may hold 1.1 of the device together"),
        (3, {"lane": "other"}, SpecError, "may run beside .*, both bound by memory"),
        (0, {"operator": "norm"}, SpecError, "no operator is called 'norm'"),
    ],
)
def test_what_is_wrong_with_a_plan_is_said(
    i: int, fields: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        changed(TWO, i, **fields)


def test_a_layer_must_wait_for_the_one_before() -> None:
    """In lanes of their own, the first product would read rows that the layer before has not finished."""
    exchanged = random_pipeline(1, 8, 2)
    first = next(i for i, op in enumerate(exchanged.ops) if op.operator == "qkv")
    with pytest.raises(SpecError, match="reads 'hidden' and does not wait for reduce_down"):
        changed(exchanged, first, behind=())


def test_three_may_hold_too_much_though_two_of_them_do_not() -> None:
    ops = [NanoOp(name, 0, 4) for name in ("qkv", "decode", "prefill")]
    ops += [NanoOp(name, 0, 4) for name in ("gather_heads", "out_columns", "gather_columns")]
    ops += [NanoOp(name, 4, 8) for name in ("qkv", "decode", "prefill", "out_parts", "reduce_out")]
    ops += [NanoOp(name, a, b) for a, b in ((0, 4), (4, 8)) for name in ("up", "down", "reduce_down")]
    plan = pipeline(ops, 8, 2)
    decode = next(i for i, op in enumerate(plan.ops) if (op.operator, op.start) == ("decode", 4))
    with pytest.raises(RangeError, match=r"and .* and .* may hold 1.1 of the device together"):
        changed(plan, decode, share=0.5)


def test_an_empty_plan_is_refused() -> None:
    with pytest.raises(RangeError, match="a plan of 0 rows"):
        serial_plan(0)
    with pytest.raises(RangeError, match="0 nano-operations"):
        OpPlan(rows=1, operators=layer_operators(), ops=())
