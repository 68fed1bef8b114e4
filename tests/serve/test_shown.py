"""Plans, reports, timelines and devices draw themselves, in terminals and in notebooks alike, and safely."""

from __future__ import annotations

import io
from xml.etree import ElementTree

import pytest
from rich.console import Console

from lightwork.cluster import parse_place
from lightwork.runtime.timeline import CELLS, MOST_LANES, lanes, lanes_table
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.loads.burst import Burst
from lightwork.serve.plan import Plan
from lightwork.serve.simulate import Report, simulate
from lightwork.shown import Table, bars_svg, cell, readable, unit_of


@pytest.fixture(scope="module")
def report() -> Report:
    return simulate(Plan(model="shape:llama-3-8b", on="sim:a100", tp=1), Burst(num_requests=3))


def in_a_terminal(value: object, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(value)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def html(value: object) -> ElementTree.Element:
    """What a notebook would show; it parses, so nothing in it was left unescaped."""
    return ElementTree.fromstring(value._repr_html_())  # type: ignore[attr-defined]


def shapes(value: object) -> int:
    return len([*html(value).iter("{http://www.w3.org/2000/svg}rect")])


def test_each_draws_itself_in_both(report: Report) -> None:
    device = parse_place("sim:a100").device
    plan = Plan(model="tiny:llama", use=("Ngram(k=4)",))
    for value, said in (
        (plan, "Ngram(k=4"),
        (report, "ttft_p50_s"),
        (report.summary, "kv_usage_max"),
        (report.trace, "engine"),
        (device, "matmul/bfloat16"),
    ):
        assert said in in_a_terminal(value)
        assert said in "".join(html(value).itertext())
    assert shapes(report) == 4  # two phases, and what their colours mean
    assert shapes(report.trace) == 2
    drawn = in_a_terminal(report)
    assert "D decode" in drawn
    assert "P prefill" in drawn
    assert shapes(device) == len(device.memories)
    assert shapes(plan) == 0


def test_a_report_is_a_table_and_plain_values(report: Report) -> None:
    table = report.table()
    assert isinstance(table, Table)
    told = report.to_dict()
    assert told["num_finished"] == 3
    assert told["simulated"] is True
    assert dict(table.rows)["num_finished"] == 3
    assert dict(table.rows)["ttft_p50_s"] == readable(told["ttft_p50_s"], "s")
    assert table.title == "simulated: sim:a100"


def test_a_picture_stays_small_however_long_the_run() -> None:
    spans = [Span(str(i % 60), f"kind {i % 3}", "x", i * 0.1, i * 0.1 + 0.05) for i in range(30_000)]
    table = lanes_table("long", lanes(spans))
    assert len(table.rows) == MOST_LANES
    assert table.title == "long; 28 more ranks"
    assert table.svg.count("<rect") <= MOST_LANES * CELLS + 3


def test_text_is_escaped() -> None:
    hostile = "<script>alert('&')</script>"
    table = Table(
        title=hostile, columns=(hostile,), rows=((hostile,),), svg=bars_svg([(hostile, 0.5, hostile)])
    )
    assert "<script" not in table._repr_html_()
    assert [*html(table).itertext()].count(hostile) == 5
    trace = Trace(hostile)
    trace.add(Span(hostile, hostile, hostile, 0.0, 1.0))
    assert "<script" not in trace._repr_html_()
    assert hostile in in_a_terminal(trace)


def test_an_empty_run_is_a_title() -> None:
    assert in_a_terminal(Trace("nothing")).startswith("nothing: 0 spans")
    assert shapes(Trace("nothing")) == 0


def test_markup_of_a_terminal_is_text() -> None:
    table = Table(title="[red]", columns=("a",), rows=(("[bold]x[/bold]",),))
    assert "[bold]x[/bold]" in in_a_terminal(table)


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0.123456, "0.1235"), (3, "3"), ("x", "x")])
def test_cells(value: object, text: str) -> None:
    assert cell(value) == text


def test_tokens_per_second_have_no_prefix() -> None:
    assert unit_of("output_tokens_per_s") == ""
