"""The live feed: the latest first, then each; bounded, and ending when it is to."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing

import numpy as np
import pytest

from lightwork.errors import BusyError
from lightwork.runtime.trace import Span
from lightwork.web.feed import PER_EVENT, WATCHERS, Feed

HELLO = {"label": "real: cpu", "about": {"model": "tiny:llama"}}


def span(i: int) -> Span:
    return Span("engine", "step", f"step {i}", float(i), i + 0.5, args={"running": np.int64(1)})


def read(frame: bytes) -> tuple[str, object]:
    name, data = frame.decode().rstrip("\n").split("\n")
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def names(spans: object) -> list[str]:
    assert isinstance(spans, list)
    return [each["name"] for each in spans]


async def watch(
    feed: Feed, *, frames: int, meanwhile: int = 0, lasts: bool = True
) -> list[tuple[str, object]]:
    """The first frames, with so many spans told after the first of them."""
    found = []
    async with aclosing(feed.events(HELLO, lambda: lasts)) as events:
        async for frame in events:
            found.append(read(frame))
            if len(found) == 1:
                for i in range(meanwhile):
                    feed.on(span(100 + i))
            if len(found) == frames:
                break
    return found


def test_a_watcher_is_told_what_was_then_what_comes():
    feed = Feed()
    for i in range(3):
        feed.on(span(i))
    (hello, told), (kind, first) = asyncio.run(watch(feed, frames=2, meanwhile=2))
    assert (hello, told) == ("hello", {**HELLO, "whole": True})
    assert kind == "spans"
    assert names(first) == ["step 0", "step 1", "step 2", "step 100", "step 101"]


def test_spans_go_as_objects_with_the_fields_of_a_span():
    feed = Feed()
    feed.on(span(7))
    _, (_, spans) = asyncio.run(watch(feed, frames=2))
    assert spans == [{**span(7)._asdict(), "args": {"running": 1}}]


def test_only_the_latest_are_kept():
    feed = Feed(recent=4)
    for i in range(100):
        feed.on(span(i))
    (_, hello), (_, spans) = asyncio.run(watch(feed, frames=2))
    assert hello == {**HELLO, "whole": False}
    assert names(spans) == ["step 96", "step 97", "step 98", "step 99"]


def test_many_spans_go_in_several_frames():
    feed = Feed()
    for i in range(PER_EVENT + 1):
        feed.on(span(i))
    frames = asyncio.run(watch(feed, frames=3))
    assert [len(names(spans)) for _, spans in frames[1:]] == [PER_EVENT, 1]


def test_who_reads_too_slowly_is_told_and_dropped():
    feed = Feed(pending=10)
    frames = asyncio.run(watch(feed, frames=9, meanwhile=50))
    assert [name for name, _ in frames] == ["hello", "dropped"]
    assert asyncio.run(watch(feed, frames=2))[0][0] == "hello", "and may come again"


def test_a_server_that_drains_ends_its_feeds():
    feed = Feed()
    feed.on(span(0))
    frames = asyncio.run(watch(feed, frames=9, lasts=False))
    assert [name for name, _ in frames] == ["hello", "spans", "end"]


def test_so_many_watch_and_no_more():
    feed = Feed()

    async def crowd() -> None:
        events = [feed.events(HELLO, lambda: True) for _ in range(WATCHERS)]
        for each in events:
            feed.check_room()
            await anext(each)
        with pytest.raises(BusyError, match="pages watch"):
            feed.check_room()
        for each in events:
            await each.aclose()
        feed.check_room()

    asyncio.run(crowd())
