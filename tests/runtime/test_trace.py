"""Spans, their observers, and Chrome traces."""

from __future__ import annotations

import json

import pytest

from lightwork.errors import SpecError
from lightwork.runtime import Span, Trace, drive
from lightwork.runtime.perfetto import read_chrome_trace, write_chrome_trace

REAL = [
    Span("0", "compute", "matmul", 0.0, 0.5, args={"rows": 3}),
    Span("0", "send", "to 1", 0.5, 1.0, 64, "1"),
    Span("1", "recv", "from 0", 0.25, 1.125, 64, "0"),
    Span("1", "finish", "7", 1.25, 1.25),
    Span("1", "counter", "queue", 1.5, 1.5, args={"waiting": 2, "running": 1}),
]


def made(label, spans):
    trace = Trace(label)
    for span in spans:
        trace.add(span)
    return trace


def events(path):
    return json.loads(path.read_text())["traceEvents"]


def test_observers_see_every_span_in_order():
    class Seen(list):
        on = list.append

    seen = Seen()
    trace = Trace("real", keep=2, observers=[seen])
    for span in REAL:
        trace.add(span)
    assert seen == REAL
    assert list(trace.spans) == REAL[-2:]


def test_a_hash_tells_traces_apart():
    assert made("a", REAL).hash() == made("b", REAL).hash()
    assert made("a", REAL).hash() != made("a", REAL[:-1]).hash()


def test_traces_come_back_from_a_file(tmp_path):
    path = tmp_path / "trace.json"
    write_chrome_trace(path, [made("real: cpu", REAL), made("simulated: a100", REAL[:2])])
    real, simulated = read_chrome_trace(path)
    assert (real.label, simulated.label) == ("real: cpu", "simulated: a100")
    assert sorted(real.spans) == sorted(REAL)
    assert sorted(simulated.spans) == sorted(REAL[:2])


def test_worlds_are_processes_and_ranks_are_threads(tmp_path):
    path = tmp_path / "trace.json"
    write_chrome_trace(path, [made("real", REAL), made("simulated", REAL)])
    names = {(e["name"], e["pid"], e["args"]["name"]) for e in events(path) if e["ph"] == "M"}
    assert names == {
        (kind, pid, name)
        for pid, label in [(1, "real"), (2, "simulated")]
        for kind, name in [("process_name", label), ("thread_name", "0"), ("thread_name", "1")]
    }
    assert {e["ph"] for e in events(path)} == set("MXiCsf")


def test_a_message_is_an_arrow_from_its_send_to_the_end_of_its_receive(tmp_path):
    path = tmp_path / "trace.json"
    sends = [Span("0", "send", "to 1", float(i), i + 0.5, 8, "1") for i in range(3)]
    recvs = [Span("1", "recv", "from 0", float(i), i + 0.75, 8, "0") for i in range(3)]
    write_chrome_trace(path, [made("real", [*sends, *recvs])])
    starts = [e for e in events(path) if e["ph"] == "s"]
    ends = [e for e in events(path) if e["ph"] == "f"]
    assert len(starts) == 3
    assert [e["id"] for e in starts] == [e["id"] for e in ends]
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        assert i * 1e6 <= start["ts"] < (i + 0.5) * 1e6
        assert i * 1e6 < end["ts"] <= (i + 0.75) * 1e6


def test_spans_of_a_rank_that_overlap_get_lanes_of_their_own(tmp_path):
    path = tmp_path / "trace.json"
    spans = [
        Span("0", "recv", "a", 0.0, 2.0),
        Span("0", "send", "b", 1.0, 3.0),
        Span("0", "step", "c", 1.0, 1.5),
    ]
    write_chrome_trace(path, [made("real", spans)])
    lanes = {e["name"]: e["tid"] for e in events(path) if e["ph"] == "X"}
    assert lanes["a"] == lanes["c"] != lanes["b"]
    (back,) = read_chrome_trace(path)
    assert sorted(back.spans) == sorted(spans)


@pytest.mark.parametrize(
    "text", ["", "[1]", "{}", '{"traceEvents": [{"ph": "X"}]}', '{"traceEvents": 3}', "7"]
)
def test_what_is_no_trace_is_refused(tmp_path, text):
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(SpecError):
        read_chrome_trace(path)


def test_drive_raises_the_errors_of_effects_in_the_strategy():
    log = []

    def perform(effect):
        if effect == 13:
            raise ValueError("unlucky")
        return effect * 2

    class Number(int):
        def __await__(self):
            return (yield self)

    async def strategy():
        log.append(await Number(2))
        try:
            await Number(13)
        except ValueError:
            log.append("caught")
        return await Number(5)

    assert drive(strategy(), perform) == 10
    assert log == [4, "caught"]
    with pytest.raises(ValueError, match="unlucky"):
        drive(_one(Number(13)), perform)


async def _one(effect):
    return await effect
