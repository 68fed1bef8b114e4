"""How full a server is, in one line: running, waiting, tokens/s, KV."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Event, Thread
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import httpx

    from lightwork.cli._chat import Chat
    from lightwork.runtime.trace import Span

NAMES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "generation_tokens_total")


def line(running: float, waiting: float, tokens_per_s: float, kv_usage: float) -> str:
    return f"running {running:g}  waiting {waiting:g}  {tokens_per_s:.3g} tokens/s  KV {kv_usage:.0%}"


class Serving:
    """An observer that shows the line of the engines that it is told of, a few times a second.

    It reads no clock: time is what spans say.
    """

    EVERY_S = 0.25

    def __init__(self, show: Callable[[str], object]) -> None:
        self._show = show
        self._latest: dict[str, Mapping[str, float]] = {}
        self._tokens = 0
        self._since_s: float | None = None

    def on(self, span: Span) -> None:
        if span.kind != "step" or span.args is None:
            return
        since_s = self._since_s = span.start_s if self._since_s is None else self._since_s
        self._latest[span.rank] = span.args
        self._tokens += sum(chunk[4] for chunk in span.args["chunks"])
        engines = self._latest.values()
        running, waiting = (sum(engine[name] for engine in engines) for name in ("running", "waiting"))
        passed_s, idle = span.end_s - since_s, not running and not waiting
        if passed_s < self.EVERY_S and not idle:
            return
        kv_usage = sum(engine["kv_usage"] for engine in engines) / len(self._latest)
        self._show(line(running, waiting, 0 if idle else self._tokens / passed_s, kv_usage))
        self._tokens, self._since_s = 0, None if idle else span.end_s


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
