"""How full a server is, in one line: running, waiting, tokens/s, KV."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Event, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import httpx

    from lightwork.cli._chat import Chat
    from lightwork.runtime.trace import Span

NAMES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "generation_tokens_total")


def line(running: float, waiting: float, tokens_per_s: float, kv_usage: float) -> str:
    return f"running {running:g}  waiting {waiting:g}  {per_s(tokens_per_s)}  KV {kv_usage:.0%}"


def per_s(tokens: float) -> str:
    """A rate as people read it: without an exponent."""
    return f"{tokens:,.0f} tokens/s" if tokens >= 100 else f"{tokens:.3g} tokens/s"


class Serving:
    """An observer that shows the line of the engines that it is told of, a few times a second.

    It reads no clock: time is what spans say.
    """

    EVERY_S = 0.25

    def __init__(self, show: Callable[[str], object]) -> None:
        self._show = show
        self._latest: dict[str, Mapping[str, float]] = {}
        self._left = 0
        self._tokens = 0
        self._since_s: float | None = None

    def on(self, span: Span) -> None:
        args = span.args or {}
        if span.kind == "arrive":
            self._left += args["n"]
        elif span.kind == "finish":
            self._left -= 1
            if not self._left and args["reason"] == "cancelled":  # no step may come that would tell
                self._idle()
        elif span.kind == "step":
            self._step(span, args)

    def _step(self, span: Span, args: Mapping[str, Any]) -> None:
        since_s = self._since_s = span.start_s if self._since_s is None else self._since_s
        self._latest[span.rank] = args
        self._tokens += sum(chunk[4] for chunk in args["chunks"])
        running, waiting = (
            sum(one[name] for one in self._latest.values()) for name in ("running", "waiting")
        )
        if not running and not waiting:
            self._idle()
        elif span.end_s - since_s >= self.EVERY_S:
            self._show(line(running, waiting, self._tokens / (span.end_s - since_s), self._kv_usage))
            self._tokens, self._since_s = 0, span.end_s

    def _idle(self) -> None:
        self._show(line(0, 0, 0.0, self._kv_usage))
        self._tokens, self._since_s = 0, None

    @property
    def _kv_usage(self) -> float:
        """Of all engines, after the last step of each."""
        return sum(one["kv_usage"] for one in self._latest.values()) / max(1, len(self._latest))


class Gauges:
    """What /metrics of a chat's server says, asked every second on a thread; "" where it does not say."""

    EVERY_S: ClassVar[float] = 1.0

    def __init__(self, chat: Chat) -> None:
        self.line = ""
        self._chat = chat
        self._ended = Event()
        self._thread = Thread(target=self._watch, name="gauges", daemon=True)

    def __enter__(self) -> Gauges:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        clock, before = self._chat.clock(), None
        while not self._ended.is_set():
            url = self._chat.server.url
            with self._chat.client() as client:
                while url == self._chat.server.url and not self._ended.wait(self.EVERY_S):
                    before = self._look(client, clock.now(), before)

    def _look(
        self, client: httpx.Client, now_s: float, before: tuple[float, float] | None
    ) -> tuple[float, float] | None:
        """Make the line. before: when it was made last, and tokens until then; returns the same of now."""
        told = _asked(client)
        if told is None:
            self.line = ""
            return None
        running, waiting, kv_usage, tokens = told
        rate = 0.0 if before is None or now_s <= before[0] else (tokens - before[1]) / (now_s - before[0])
        self.line = line(running, waiting, max(rate, 0.0), kv_usage)
        return now_s, tokens


def _asked(client: httpx.Client) -> list[float] | None:
    import httpx

    try:
        reply = client.get("/metrics", timeout=Gauges.EVERY_S)
        return parsed(reply.text) if reply.status_code == 200 else None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None


def parsed(text: str) -> list[float] | None:
    """The numbers of NAMES in a Prometheus exposition; None if one is not there. Raises ValueError."""
    lines = (line.split() for line in text.splitlines() if line and not line.startswith("#"))
    found = {words[0].removeprefix("lightwork_"): words[1] for words in lines if len(words) == 2}
    return [float(found[name]) for name in NAMES] if all(name in found for name in NAMES) else None
