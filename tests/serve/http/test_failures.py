"""What goes wrong on the server's side is told to every caller, in the shape they expect."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from lightwork.serve.http.main import BackgroundServer, Loaded, load
from lightwork.serve.plan import Plan

NAME = "tiny"
BODY = {"model": NAME, "prompt": "x", "max_tokens": 200, "ignore_eos": True}


@pytest.fixture
def own(checkpoint: Callable[..., Path]) -> Loaded:
    return load(Plan(model=str(checkpoint("llama")), max_len=256), name=NAME)


def break_step(loaded: Loaded, number: int) -> None:
    """Make the runner fail once, at its number-th step from now."""
    runner: Any = loaded.service.engine.runner
    forward, left = runner._forward, [number]

    def failing(*args: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            raise ValueError("boom")
        return forward(*args)

    runner._forward = failing


def test_a_failed_step_is_an_error_with_its_reason_in_the_log(
    own: Loaded, caplog: pytest.LogCaptureFixture
) -> None:
    with BackgroundServer(own) as url, caplog.at_level(logging.ERROR):
        break_step(own, 4)
        whole = httpx.post(f"{url}/v1/completions", json=BODY, timeout=60)
        assert whole.status_code == 500
        assert whole.json()["error"]["type"] == "server_error"
        assert whole.headers["x-request-id"]
        break_step(own, 4)
        streamed = httpx.post(f"{url}/v1/completions", json={**BODY, "stream": True}, timeout=60)
        assert streamed.text.rstrip().splitlines()[-2] == "event: error"
        assert "server_error" in streamed.text
        assert "[DONE]" not in streamed.text
        assert httpx.post(f"{url}/v1/completions", json={**BODY, "max_tokens": 2}).status_code == 200
    assert [str(r.exc_info[1]) for r in caplog.records if r.exc_info] == ["boom", "boom"]


def test_a_stopped_server_never_passes_a_piece_for_the_whole(own: Loaded) -> None:
    runner: Any = own.service.engine.runner
    forward, go_on, steps = runner._forward, threading.Event(), []

    def gated(*args: object) -> object:
        steps.append(args)
        if len(steps) > 4:
            assert go_on.wait(60)
        return forward(*args)

    runner._forward = gated
    asked = [BODY, {**BODY, "stream": True}, {**BODY, "n": 3}, {**BODY, "prompt": ["a", "b"], "stream": True}]

    async def main(url: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            replies = [asyncio.ensure_future(http.post("/v1/completions", json=b)) for b in asked]
            while await own.service.ask(lambda e: e.num_unfinished < 7 or not e.running):
                pass
            closing = asyncio.ensure_future(asyncio.to_thread(own.service.close))
            while own.service.ready:
                await http.get("/health")
            go_on.set()
            await closing
            assert (await http.get("/ready")).status_code == 503
            assert (await http.get("/metrics")).status_code == 200
            return await asyncio.gather(*replies)

    with BackgroundServer(own) as url:
        whole, streamed, several, side = asyncio.run(main(url))
    assert whole.status_code == several.status_code == 503
    assert "before the reply was complete" in whole.json()["error"]["message"]
    for reply in (streamed, side):
        assert reply.text.rstrip().splitlines()[-2] == "event: error"
        assert '"finish_reason": "stop"' not in reply.text


@pytest.mark.multiproc
@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
def test_streams_go_on_when_an_engine_is_killed(checkpoint: Callable[..., Path]) -> None:
    """In the middle of all of them; afterwards two engines serve again."""
    deployed = load(
        Plan(model=str(checkpoint("llama")), use=("Replicas(copies=2)",), max_len=256, prefix_cache=False),
        name=NAME,
    )
    engine: Any = deployed.service.engine
    asked = [
        {**BODY, "prompt": f"number {i}", "seed": i, "temperature": 1.0, "stream": True} for i in range(6)
    ]
    victim = engine.engines[0].child.process.pid
    doomed: list[int] = []

    def streamed(body: dict[str, Any]) -> tuple[str, bool]:
        lines = []
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
            for line in filter(None, response.iter_lines()):
                lines.append(line.removeprefix("data: "))
                if len(lines) == 20 and doomed:
                    os.kill(doomed.pop(), signal.SIGKILL)
        return "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1]), lines[-1] == "[DONE]"

    with BackgroundServer(deployed) as url, ThreadPoolExecutor(len(asked)) as callers:
        undisturbed = [*callers.map(streamed, asked)]
        assert all(done for _, done in undisturbed)
        doomed.append(victim)
        assert [*callers.map(streamed, asked)] == undisturbed
        assert not doomed
        while engine.engines[0].child.process.pid == victim or not engine.engines[0].serving:
            threading.Event().wait(0.01)
        assert [*callers.map(streamed, asked)] == undisturbed
