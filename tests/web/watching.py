"""Populations that are watched, and who asks about them by HTTP."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
from browsing import started

from lightwork.runtime import Kernel, Sleep, Trace, WallClock
from lightwork.runtime.actors import Actors
from lightwork.web.monitor import Monitor

T = TypeVar("T")
Ask = Callable[[httpx.Client], T]
MINUTE_S = 60.0


class Thinker:
    """Remembers what it is told, and may be long about it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.told: list[Any] = []

    def tell(self, what: Any) -> int:
        self.told.append(what)
        return len(self.told)

    async def think(self, seconds: float) -> None:
        await Sleep(seconds)


def of_thinkers(num: int, ask: Callable[[httpx.Client, list[Any]], T]) -> tuple[T, Trace]:
    """What ask(client, refs) finds out about so many that are here and idle; and the trace of it."""
    trace = Trace("real: local", calls=False)
    kernel = Kernel(WallClock(), trace=trace)
    monitor = Monitor("thinkers", trace)
    with Actors(kernel) as actors:
        refs = [actors.create(Thinker, f"thinker {i}") for i in range(num)]

        async def main() -> T:
            with httpx.Client(base_url=monitor.url, timeout=MINUTE_S) as client:
                found: T = await kernel.offload(ask, client, refs)
                return found

        return monitor.perform(actors, main()), trace


@contextmanager
def simulating(game: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """`lightwork simulate` with a page, and who asks it."""
    with (
        started("simulate", str(game), "--page", "0", *words) as (process, address),
        httpx.Client(base_url=address, timeout=MINUTE_S) as client,
    ):
        yield process, client


def until(client: httpx.Client, enough: Callable[[dict[str, Any]], bool], path: str = "/ui/agents") -> Any:
    """The first answer that is enough."""
    for _ in range(2000):
        told = client.get(path).raise_for_status().json()
        if enough(told):
            return told
    raise AssertionError(told)


def feed(
    client: httpx.Client, enough: Callable[[list[tuple[int, str, Any]]], bool], **asked: Any
) -> list[tuple[int, str, Any]]:
    """(id, name, data) of the feed's events until they are enough, or it ends."""
    found: list[tuple[int, str, Any]] = []
    with client.stream("GET", "/ui/agents/feed", **asked) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        event: dict[str, str] = {}
        for line in reply.iter_lines():
            if line:
                key, _, value = line.partition(": ")
                event[key] = value
            else:
                found.append((int(event["id"]), event["event"], json.loads(event["data"])))
                if enough(found):
                    break
    return found


def listed(client: httpx.Client, **asked: Any) -> list[dict[str, Any]]:
    """All pages."""
    found: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        page = client.get("/ui/agents/list", params={**asked, "after": after}).raise_for_status().json()
        found += page["agents"]
        after = page["next"]
    return found


def do(client: httpx.Client, what: str, **whom: str) -> httpx.Response:
    return client.post("/ui/agents/do", json={"do": what, **whom})
