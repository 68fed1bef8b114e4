"""Chrome trace JSON, which Perfetto's page and the browser's own viewer open, from traces and back.

A process is a trace (so a real run and a simulated one stand side by side), a thread is a rank. A message is
an arrow from its send to the end of its receive; a span of kind "counter" is a counter. Viewers want the
slices of a thread nested, so spans of one rank that overlap otherwise get threads of their own ("0 (2)").
Times are microseconds there, seconds here.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lightwork.errors import SpecError
from lightwork.home import save
from lightwork.runtime.trace import Span, Trace

Event = dict[str, Any]


def write_chrome_trace(path: str | Path, traces: Iterable[Trace]) -> None:
    """Write traces side by side into one file. Raises LightworkError if it cannot be written."""
    events: list[Event] = []
    arrows = 0
    for pid, trace in enumerate(traces, start=1):
        events.append(_name("process_name", pid, 0, trace.label))
        if trace.about:
            events.append({"ph": "M", "name": "about", "pid": pid, "args": trace.about})
        placed, threads = _placed(trace, pid)
        events.extend(threads)
        events.extend(event for span, tid in placed for event in _span_events(span, pid, tid))
        for send, receive in _messages(placed):
            arrows += 1
            events.extend(_arrow(send, receive, pid, arrows))
    data = {"traceEvents": events, "displayTimeUnit": "ms"}
    text = json.dumps(data, separators=(",", ":"), default=plain)
    save(Path(path), lambda part: part.write_text(text, encoding="utf-8"))


def _placed(trace: Trace, pid: int) -> tuple[list[tuple[Span, int]], list[Event]]:
    """Each span with its thread, longer ones before those they contain; and the names of the threads."""
    lanes: dict[str, list[tuple[int, list[float]]]] = {}
    placed: list[tuple[Span, int]] = []
    threads: list[Event] = []
    for span in sorted(trace.spans, key=lambda s: (s.start_s, -s.end_s)):
        mine = lanes.setdefault(span.rank, [])
        for _, ends in mine:
            while ends and ends[-1] <= span.start_s:
                ends.pop()
        tid, ends = next((lane for lane in mine if not lane[1] or span.end_s <= lane[1][-1]), (0, []))
        if not tid:
            tid = len(threads) + 1
            mine.append((tid, ends))
            name = span.rank if len(mine) == 1 else f"{span.rank} ({len(mine)})"
            thread = _name("thread_name", pid, tid, name)
            thread["args"]["rank"] = span.rank
            threads.append(thread)
        ends.append(span.end_s)
        placed.append((span, tid))
    return placed, threads


def _span_events(span: Span, pid: int, tid: int) -> Iterator[Event]:
    args = dict(span.args or {})
    event: Event = {"name": span.name, "ts": span.start_s * 1e6, "pid": pid, "tid": tid, "args": args}
    if span.kind == "counter":
        yield {"ph": "C", **event}
        return
    if span.bytes:
        args["bytes"] = span.bytes
    if span.peer:
        args["peer"] = span.peer
    if span.end_s == span.start_s and not span.peer:  # arrows end at slices, not at instants
        yield {"ph": "i", "s": "t", "cat": span.kind, **event}
    else:
        yield {"ph": "X", "dur": (span.end_s - span.start_s) * 1e6, "cat": span.kind, **event}


def _messages(placed: list[tuple[Span, int]]) -> Iterator[tuple[tuple[Span, int], tuple[Span, int]]]:
    """Sends with their receives: in order, for each pair of ranks and tag."""
    sent: dict[tuple[str, str, Any], deque[tuple[Span, int]]] = {}
    for span, tid in placed:
        if span.kind == "send":
            sent.setdefault((span.rank, span.peer, _tag(span)), deque()).append((span, tid))
    for span, tid in placed:
        waiting = sent.get((span.peer, span.rank, _tag(span))) if span.kind == "recv" else None
        if waiting:
            yield waiting.popleft(), (span, tid)


def _tag(span: Span) -> Any:
    return (span.args or {}).get("tag", 0)


def _arrow(send: tuple[Span, int], receive: tuple[Span, int], pid: int, number: int) -> Iterator[Event]:
    event: Event = {"cat": "message", "name": "message", "id": number, "pid": pid}
    yield {"ph": "s", "ts": send[0].start_s * 1e6, "tid": send[1], **event}
    end_us = max(receive[0].start_s, receive[0].end_s - 1e-9) * 1e6  # within the slice, which its end is not
    yield {"ph": "f", "bp": "e", "ts": end_us, "tid": receive[1], **event}


def _name(what: str, pid: int, tid: int, name: str) -> Event:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}


def plain(x: Any) -> Any:
    """What json cannot write: numbers of numpy as numbers, the rest as text."""
    return x.item() if hasattr(x, "item") else str(x)


def read_chrome_trace(path: str | Path) -> list[Trace]:
    """Traces of a Chrome trace file, one per process. Raises SpecError if it is none."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        return _traces(data["traceEvents"] if isinstance(data, dict) else data)
    except OSError as error:
        raise SpecError(
            f"{path} cannot be read: {error.strerror}", expected="a trace file", fix="check the path"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(
            f"{path} is not a Chrome trace: {error!r}",
            expected="what --trace writes",
            fix="lightwork demo --trace out.json",
        ) from error


def _traces(events: list[Event]) -> list[Trace]:
    about = {e["pid"]: dict(e["args"]) for e in events if e.get("ph") == "M" and e["name"] == "about"}
    names = {
        (e["name"], e["pid"], e.get("tid", 0)): str(e["args"].get("rank", e["args"].get("name")))
        for e in events
        if e.get("ph") == "M" and e.get("args") and e["name"] != "about"
    }
    found: dict[Any, list[Span]] = {}
    for e in events:
        if e.get("ph") not in ("X", "i", "C"):
            continue
        pid, tid = e["pid"], e.get("tid", 0)
        args = dict(e.get("args") or {})
        counter = e["ph"] == "C"
        start_s = e["ts"] / 1e6
        found.setdefault(pid, []).append(
            Span(
                rank=names.get(("thread_name", pid, tid), str(tid)),
                kind="counter" if counter else str(e.get("cat", "")),
                name=str(e["name"]),
                start_s=start_s,
                end_s=start_s + e.get("dur", 0.0) / 1e6,
                bytes=0 if counter else int(args.pop("bytes", 0)),
                peer="" if counter else str(args.pop("peer", "")),
                args=args or None,
            )
        )
    return [
        _trace(names.get(("process_name", pid, 0), str(pid)), about.get(pid, {}), spans)
        for pid, spans in found.items()
    ]


def _trace(label: str, about: dict[str, Any], spans: list[Span]) -> Trace:
    """Spans in order of their end, as they were told; what happened at that moment comes first. Times of a
    file are whole to a nanosecond."""
    trace = Trace(label)
    trace.about = about
    for span in sorted(spans, key=lambda s: (round(s.end_s, 9), s.end_s > s.start_s)):
        trace.add(span)
    return trace
