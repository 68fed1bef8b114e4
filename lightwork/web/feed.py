"""Spans of a running server for the page, as server-sent events: the latest first, then each as it ends.

Nothing grows without bound: the latest spans are a ring, and a watcher that reads too slowly is told so and
dropped. The kernel's thread only appends to lists; everything else happens on the event loop.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from threading import Lock
from typing import Any

from lightwork.errors import BusyError
from lightwork.runtime.perfetto import plain
from lightwork.runtime.trace import Span

RECENT = 20_000
"""Spans that a new watcher is told first."""
PENDING = 20_000
"""Spans that may wait for a watcher: more, and it reads too slowly."""
WATCHERS = 16
PER_EVENT = 500
BEAT_S = 0.1


@dataclass(slots=True, eq=False)
class _Watcher:
    """One open page."""

    pending: list[Span] = field(default_factory=list)
    dropped: bool = False


class Feed:
    """An observer of a trace, read by any number of pages up to WATCHERS."""

    def __init__(self, *, recent: int = RECENT, pending: int = PENDING) -> None:
        self._recent = recent
        self._latest: deque[Span] = deque(maxlen=recent)
        self._pending = pending
        self._watchers: list[_Watcher] = []
        self._lock = Lock()

    def on(self, span: Span) -> None:
        """Called on the kernel's thread."""
        with self._lock:
            self._latest.append(span)
            for watcher in self._watchers:
                if len(watcher.pending) >= self._pending:
                    watcher.dropped = True
                    watcher.pending.clear()
                if not watcher.dropped:
                    watcher.pending.append(span)

    def check_room(self) -> None:
        """Raises BusyError if too many pages are open."""
        if len(self._watchers) >= WATCHERS:
            raise BusyError(
                f"{WATCHERS} pages watch this server already",
                retry_after_s=5,
                expected=f"fewer than {WATCHERS}",
                fix="close one",
            )

    async def events(self, hello: Mapping[str, Any], lasts: Callable[[], bool]) -> AsyncIterator[bytes]:
        """`hello` once, `spans` as they come; `dropped` or `end` (when lasts() is false) is the last one.

        hello says with `whole` that no spans came before those that are told.
        """
        watcher, whole = self._join()
        try:
            yield event("hello", {**hello, "whole": whole})
            while True:
                spans, dropped = self._take(watcher)
                rest = iter(spans)
                while part := list(islice(rest, PER_EVENT)):
                    # On a thread: the replies that stream beside this one must not wait for it.
                    yield await asyncio.to_thread(event, "spans", [span_object(span) for span in part])
                if dropped or not lasts():
                    yield event("dropped" if dropped else "end", {})
                    return
                await beat()
        finally:
            with self._lock:
                self._watchers.remove(watcher)

    def _join(self) -> tuple[_Watcher, bool]:
        with self._lock:
            watcher = _Watcher(list(self._latest))
            self._watchers.append(watcher)
            return watcher, len(self._latest) < self._recent

    def _take(self, watcher: _Watcher) -> tuple[Sequence[Span], bool]:
        with self._lock:
            spans, watcher.pending = watcher.pending, []
            return spans, watcher.dropped


def span_object(span: Span) -> dict[str, Any]:
    """A span as the page knows it, and sends it back: the fields of `Span`."""
    return span._asdict()


def event(name: str, data: Any) -> bytes:
    """One server-sent event."""
    text = json.dumps(data, separators=(",", ":"), default=plain)
    return f"event: {name}\ndata: {text}\n\n".encode()


async def beat() -> None:
    """Let spans gather: several a frame are cheaper than each on its own, and nobody sees faster."""
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), BEAT_S)
