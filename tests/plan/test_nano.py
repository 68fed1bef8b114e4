"""The search for nano-operations: what it may return, and when it must say that there is nothing to gain."""

from __future__ import annotations

import sys
from functools import cache

import pytest

from lightwork.cluster import CostModel, parse_place
from lightwork.errors import MissingExtraError, RangeError
from lightwork.models.presets import preset
from lightwork.parallel.operator_times import OperatorTimes
from lightwork.plan.nano import UNIT, Found, Layers, search

SHARING = {"memory": ((0.0, 0.0), (0.4, 0.8), (1.0, 1.0)), "network": ((0.0, 0.0), (0.2, 0.5), (1.0, 1.0))}
SECONDS = {"qkv": 2.0, "decode": 6.0, "prefill": 0.5, "out": 2.0, "up": 8.0, "down": 4.0}
"""Of all rows; an exchange takes 2."""
ROWS = 1024


def alone(operator: str, rows: int) -> float:
    return SECONDS.get(operator.partition("_")[0], 2.0) * rows / ROWS


def layers(**fields: object) -> Layers:
    settings = {"rows": ROWS, "num_layers": 30, "alone": alone, "sharing": SHARING} | fields
    return Layers(**settings)  # type: ignore[arg-type]


def nothing_found(found: Found) -> bool:
    return found.plan.is_serial and found.seconds == found.serial_s and found.gain == 1.0


@cache
def answer(tp: int) -> Found:
    return search(layers(tp=tp))


@pytest.mark.parametrize("tp", [1, 4])
def test_what_is_found_takes_as_long_as_it_says_and_no_less_than_its_products(tp: int) -> None:
    found = answer(tp)
    assert found.seconds == layers(tp=tp).seconds(found.plan)
    products_s = 30 * sum(SECONDS[name] for name in ("qkv", "prefill", "out", "up", "down"))
    assert products_s < found.seconds < 0.95 * found.serial_s
    assert found.serial_s == pytest.approx(products_s + 30 * (6.0 + (4.0 if tp > 1 else 0.0)))
    assert found.seconds == min(seconds for _, seconds in found.tried)


@pytest.mark.parametrize("tp", [1, 4])
def test_ranges_are_multiples_of_the_unit(tp: int) -> None:
    for plan, _ in answer(tp).tried:
        assert {op.start % UNIT for op in plan.ops} == {op.stop % UNIT for op in plan.ops} == {0}
        assert len([op for op in plan.ops if op.operator == "qkv"]) > 1


def test_both_splits_of_the_output_projection_are_tried() -> None:
    seen = {
        frozenset(op.operator for op in plan.ops if op.operator.startswith("out"))
        for plan, _ in answer(4).tried
    }
    assert seen == {
        frozenset({"out_parts"}),
        frozenset({"out_columns"}),
        frozenset({"out_parts", "out_columns"}),
    }


def test_the_same_question_has_the_same_answer() -> None:
    assert search(layers(tp=1)) == answer(1)


@pytest.mark.parametrize(
    "fields",
    [
        {"sharing": {}},  # kernels side by side are no faster than one after another
        {"alone": lambda operator, rows: 0.0 if operator == "decode" else alone(operator, rows)},
        {"alone": lambda operator, rows: alone(operator, ROWS)},  # a range takes as long as all rows
        {"rows": UNIT},
        {"rows": 1000},
        {"rows": 1},
    ],
    ids=["no curve", "nothing to hide", "fixed times", "one unit", "no multiple", "one row"],
)
def test_where_nothing_is_gained_one_operator_after_another_is_the_answer(fields: dict[str, object]) -> None:
    assert nothing_found(search(layers(**fields)))


def test_a_place_that_says_nothing_of_sharing_is_left_serial() -> None:
    spec, costs = preset("llama-3-8b"), CostModel(parse_place("sim:h100"))
    times = OperatorTimes(spec, costs, [(1000, 1)] * 512 + [(0, 512)], dtype="bfloat16")
    sharing = costs.cluster.device.sharing
    assert nothing_found(search(Layers(rows=1024, num_layers=spec.num_layers, alone=times, sharing=sharing)))


def test_a_place_that_was_measured_gains_as_priced() -> None:
    spec, costs = preset("llama-3-8b"), CostModel(parse_place("sim:a100"))
    times = OperatorTimes(spec, costs, [(1000, 1)] * 1024 + [(0, 512)] * 2, dtype="bfloat16")
    sharing = costs.cluster.device.sharing
    found = search(Layers(rows=2048, num_layers=spec.num_layers, alone=times, sharing=sharing))
    assert 1.05 < found.gain < 1.5


@pytest.mark.parametrize("fields", [{"rows": 0}, {"num_layers": 0}])
def test_nothing_to_carry_out_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(RangeError):
        search(layers(**fields))


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtraError, match="scipy is not installed"):
        search(layers())
