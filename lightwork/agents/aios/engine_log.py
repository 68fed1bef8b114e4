"""When the serving engine ran a call: read off the trace that it writes anyway."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightwork.agents.aios.syscall import Syscall
from lightwork.runtime.trace import Span


class EngineLog:
    """Observes the kernel's trace. A call's turn is an unbroken row of steps that contain its sequence."""

    def __init__(self) -> None:
        self._asking: Syscall | None = None
        self._calls: dict[tuple[str, str], Syscall] = {}
        self._latest: dict[str, set[tuple[str, str]]] = {}
        self._ended: list[tuple[str, str]] = []

    @contextmanager
    def asking(self, call: Syscall) -> Iterator[None]:
        """Sequences that arrive inside are this call's."""
        self._asking = call
        try:
            yield
        finally:
            self._asking = None

    def on(self, span: Span) -> None:
        if span.kind == "step":
            if self._calls:
                self._step(span)
        elif span.kind == "arrive" and self._asking is not None:
            self._calls[span.rank, span.name] = self._asking
        elif span.kind == "finish" and (span.rank, span.name) in self._calls:
            self._ended.append((span.rank, span.name))  # it was in the step that ends next, or in none

    def _step(self, span: Span) -> None:
        before = self._latest.get(span.rank, set())
        chunks = span.args["chunks"] if span.args else ()
        latest = self._latest[span.rank] = {(span.rank, str(id)) for id, *_ in chunks}
        for key in latest & self._calls.keys():
            call = self._calls[key]
            if key in before:
                call.ends_s[-1] = span.end_s
            else:
                call.start(span.start_s)
                call.ends_s.append(span.end_s)
        for key in (before - latest) & self._calls.keys():
            self._calls[key].status = "suspending"
        for key in self._ended:
            self._calls.pop(key, None)
        self._ended.clear()
