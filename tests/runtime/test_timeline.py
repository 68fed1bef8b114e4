"""The picture of a trace: one lane per rank, one letter per kind."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.runtime.timeline import coloured, draw, in_units, lanes, letters, ruler
from lightwork.runtime.trace import Span


def span(rank: str, kind: str, start_s: float, end_s: float) -> Span:
    return Span(rank, kind, kind, start_s, end_s)


RUN = [
    span("10", "compute", 0.0, 2.0),
    span("2", "send", 0.0, 1.0),
    span("2", "step", 0.0, 4.0),
    span("2", "compute", 3.0, 4.0),
    span("engine", "finish", 4.0, 4.0),
]


def test_lanes_are_in_natural_order_and_count_overlap_once():
    found = lanes(RUN)
    assert [lane.rank for lane in found] == ["2", "10", "engine"]
    assert [lane.busy_s for lane in found] == [4.0, 2.0, 0.0]
    assert found[0].by_kind == {"send": 1.0, "step": 4.0, "compute": 1.0}
    assert found[0].mostly == "step, compute, send"


def test_the_innermost_span_is_drawn():
    found = lanes(RUN)
    letter = letters(found)
    assert letter == {"step": "S", "compute": "C", "send": "E", "finish": "F"}
    assert draw(found[0], letter, 0.0, 4.0, 8) == "EESSSSCC"
    assert draw(found[1], letter, 0.0, 4.0, 8) == "CCCC...."
    assert draw(found[2], letter, 0.0, 4.0, 8) == "........"
    assert draw(found[0], letter, 0.0, 0.0, 8) == "........"


def test_a_short_span_shows_where_nothing_else_is():
    (lane,) = lanes([span("0", "compute", 0.0, 1.0), span("0", "send", 5.1, 5.2)])
    assert draw(lane, letters([lane]), 0.0, 10.0, 10) == "C....S...."


def test_colours_change_no_letter():
    line = coloured("EES.", {"send": "E", "step": "S"})
    assert line.count("\x1b[0m") == 3
    assert line.endswith(".")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.0, "2 s"), (0.25, "250 ms"), (3.2e-5, "32 µs"), (1e-9, "0.001 µs"), (0.0, "0 µs")],
)
def test_times_are_written_in_the_unit_that_fits(seconds, text):
    assert in_units(seconds) == text


def test_the_axis_is_as_wide_as_the_picture():
    assert ruler(2.0, 20) == "0                2 s"


spans = st.builds(
    lambda rank, kind, start, length: span(rank, kind, start, start + length),
    st.sampled_from(["0", "1", "x"]),
    st.text(max_size=8),
    st.floats(0, 100),
    st.floats(0, 50),
)


@given(st.lists(spans, min_size=1, max_size=30), st.integers(1, 60))
def test_every_lane_is_exactly_as_wide_as_asked_and_never_busier_than_the_run(run, width):
    found = lanes(run)
    start_s, end_s = min(s.start_s for s in run), max(s.end_s for s in run)
    letter = letters(found)
    for lane in found:
        assert len(draw(lane, letter, start_s, end_s, width)) == width
        assert lane.busy_s <= (end_s - start_s) * (1 + 1e-9) + 1e-9
        assert lane.busy_s <= sum(lane.by_kind.values()) * (1 + 1e-9) + 1e-9
