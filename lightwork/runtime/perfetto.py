"""Chrome trace JSON, which Perfetto's page and the browser's own viewer open, from traces and back.

A process is a trace (so a real run and a simulated one stand side by side), a thread is a rank. A span with
a peer becomes a flow arrow; a span of kind "counter" becomes a counter. Times are microseconds there,
seconds here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lightwork.errors import SpecError
from lightwork.runtime.trace import Span, Trace


def write_chrome_trace(path: str | Path, traces: Iterable[Trace]) -> None:
    """Write traces side by side into one file."""
    events: list[dict[str, Any]] = []
    for pid, trace in enumerate(traces, start=1):
        events.append(_name("process_name", pid, 0, trace.label))
        events.extend(_events(trace, pid))
    text = json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, separators=(",", ":"), default=str)
    Path(path).write_text(text, encoding="utf-8")


def _events(trace: Trace, pid: int) -> Iterator[dict[str, Any]]:
    threads: dict[str, int] = {}
    arrows = 0
    for span in trace.spans:
        if span.rank not in threads:
            threads[span.rank] = len(threads) + 1
            yield _name("thread_name", pid, threads[span.rank], span.rank)
        place = {"pid": pid, "tid": threads[span.rank]}
        args = dict(span.args or {})
        if span.kind == "counter":
            yield {"ph": "C", "name": span.name, "ts": span.start_s * 1e6, "args": args, **place}
            continue
        if span.bytes:
            args["bytes"] = span.bytes
        if span.peer:
            args["peer"] = span.peer
        common = {"name": span.name, "cat": span.kind, "ts": span.start_s * 1e6, "args": args, **place}
        if span.end_s == span.start_s:
            yield {"ph": "i", "s": "t", **common}
        else:
            yield {"ph": "X", "dur": (span.end_s - span.start_s) * 1e6, **common}
        if span.peer in threads and span.kind == "send":
            arrows += 1
            arrow = {"cat": "message", "name": "message", "id": pid * 10_000_000 + arrows, "pid": pid}
            yield {"ph": "s", "ts": span.start_s * 1e6, "tid": threads[span.rank], **arrow}
            yield {"ph": "f", "bp": "e", "ts": span.end_s * 1e6, "tid": threads[span.peer], **arrow}


def _name(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}


def read_chrome_trace(path: str | Path) -> list[Trace]:
    """Traces of a Chrome trace file, one per process. Raises SpecError if it is none."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        events = data["traceEvents"] if isinstance(data, dict) else data
        return _traces(events)
    except OSError as error:
        raise SpecError(
            f"{path} cannot be read: {error.strerror}", expected="a trace file", fix="check the path"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{path} is not a Chrome trace: {error!r}", expected="what --trace writes") from error


def _traces(events: list[dict[str, Any]]) -> list[Trace]:
    names = {
        (e["name"], e["pid"], e.get("tid", 0)): str(e["args"]["name"])
        for e in events
        if e.get("ph") == "M" and e["args"]
    }
    traces: dict[Any, Trace] = {}
    for e in events:
        if e.get("ph") not in ("X", "i", "C"):
            continue
        pid, tid = e["pid"], e.get("tid", 0)
        if pid not in traces:
            traces[pid] = Trace(names.get(("process_name", pid, 0), str(pid)))
        args = dict(e.get("args") or {})
        start_s = e["ts"] / 1e6
        traces[pid].add(
            Span(
                rank=names.get(("thread_name", pid, tid), str(tid)),
                kind="counter" if e["ph"] == "C" else str(e.get("cat", "")),
                name=str(e["name"]),
                start_s=start_s,
                end_s=start_s + e.get("dur", 0.0) / 1e6,
                bytes=int(args.pop("bytes", 0)) if e["ph"] != "C" else 0,
                peer=str(args.pop("peer", "")) if e["ph"] != "C" else "",
                args=args or None,
            )
        )
    return list(traces.values())
