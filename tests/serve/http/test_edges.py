"""What is easily dropped: work behind a refusal, fields beside streaming, sums, a dead engine."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from lightwork.serve.http.main import BackgroundServer, Loaded, load
from lightwork.serve.plan import Plan
from lightwork.serve.schedulers import Scheduler, Step, View

NAME = "tiny"
PATH = "/v1/completions"
LONG: dict[str, Any] = {"model": NAME, "prompt": "x", "max_tokens": 240, "ignore_eos": True}
Idle = Callable[[], None]


def events(reply: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]


def finished(loaded: Loaded) -> list[str]:
    return [s.args["reason"] for s in loaded.trace.spans if s.kind == "finish" and s.args]


@pytest.mark.parametrize(
    ("field", "more"),
    [("echo", {"echo": True, "logprobs": 1}), ("prompt_logprobs", {"prompt_logprobs": 1})],
)
def test_what_cannot_be_streamed_is_refused_before_it_is_started(
    http: httpx.Client, loaded: Loaded, idle: Idle, field: str, more: dict[str, Any]
) -> None:
    before = len(finished(loaded))
    reply = http.post(PATH, json={**LONG, "stream": True, **more})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, field)
    idle()
    assert len(finished(loaded)) == before


def test_a_chat_reports_its_prompts_logprobs(http: httpx.Client) -> None:
    body = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "n": 2}
    reply = http.post("/v1/chat/completions", json={**body, "prompt_logprobs": 1}).json()
    assert reply["prompt_logprobs"][0] is None
    assert len(reply["prompt_logprobs"]) == reply["usage"]["prompt_tokens"]
    assert "prompt_logprobs" not in http.post("/v1/chat/completions", json=body).json()


def test_streamed_or_not_the_usage_of_several_prompts_is_the_same(http: httpx.Client) -> None:
    body = {
        **LONG,
        "max_tokens": 3,
        "prompt": ["a prompt of some length" * 4, "and one more, longer" * 5],
        "n": 3,
    }
    http.post(PATH, json=body)
    whole = http.post(PATH, json=body).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    last = events(http.post(PATH, json={**body, **options}))[-1]
    assert last["usage"] == whole["usage"]
    alone = [http.post(PATH, json={**body, "prompt": p, "n": 1}).json()["usage"] for p in body["prompt"]]
    assert whole["usage"]["prompt_tokens"] == sum(u["prompt_tokens"] for u in alone)
    cached = [u["prompt_tokens_details"]["cached_tokens"] for u in (whole["usage"], *alone)]
    assert cached[0] == sum(cached[1:]) > 0
    assert last["timings"].keys() == whole["timings"].keys()


def test_streamed_echoes_and_offsets_are_those_of_the_whole_reply(http: httpx.Client) -> None:
    body = {**LONG, "max_tokens": 8, "prompt": ["Hello", "Bye"], "n": 2, "temperature": 1.0, "seed": 3}
    for more in ({"echo": True}, {"logprobs": 1}):
        whole = http.post(PATH, json={**body, **more}).json()["choices"]
        texts, offsets = [""] * 4, [[] for _ in range(4)]  # type: ignore[var-annotated]
        for event in events(http.post(PATH, json={**body, **more, "stream": True})):
            for choice in event["choices"]:
                texts[choice["index"]] += choice["text"]
                offsets[choice["index"]] += (choice["logprobs"] or {}).get("text_offset", [])
        assert texts == [c["text"] for c in whole]
        assert offsets == [(c["logprobs"] or {}).get("text_offset", []) for c in whole]


def test_a_chunked_body_over_the_limit_is_told_the_limit(http: httpx.Client) -> None:
    reply = http.post(PATH, content=(b"x" * 65_536 for _ in range(160)))
    assert reply.status_code == 413
    assert str(4 << 20) in reply.json()["error"]["message"]


def test_a_client_that_leaves_before_its_stream_begins_frees_its_memory(
    url: str, loaded: Loaded, idle: Idle
) -> None:
    before, gate, held = len(finished(loaded)), threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        gate.wait(30)

    loaded.service.kernel.post(hold)
    assert held.wait(30)
    body = json.dumps({**LONG, "stream": True}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head.encode() + b"\r\n\r\n" + body)
        httpx.get(f"{url}/health")
    httpx.get(f"{url}/health")
    gate.set()
    while len(finished(loaded)) == before:
        httpx.get(f"{url}/health")
    assert finished(loaded)[before:] == ["cancelled"]


class Broken:
    """Plans a few steps, then fails: a bug of the engine's own."""

    def __init__(self, inner: Scheduler[Any], after: int) -> None:
        self.inner = inner
        self.left = after

    def init(self) -> Any:
        return self.inner.init()

    def plan(self, state: Any, view: View) -> Step:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("boom")
        return self.inner.plan(state, view)


def test_a_dead_engine_ends_streams_with_an_error_and_is_seen_from_outside(
    checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load(Plan(model=str(checkpoint("llama")), max_len=256), name=NAME)
    engine = loaded.service.engine
    engine.scheduler = Broken(engine.scheduler, after=5)
    with BackgroundServer(loaded) as url, httpx.Client(base_url=url, timeout=60) as http:
        with caplog.at_level(logging.ERROR):
            reply = http.post(PATH, json={**LONG, "stream": True})
        assert reply.status_code == 200
        assert "event: error\n" in reply.text
        assert "[DONE]" not in reply.text
        assert events(reply)[-1]["error"]["type"] == "server_error"
        assert any(record.exc_info and "boom" in str(record.exc_info[1]) for record in caplog.records)
        late = http.post(PATH, json=LONG)
        assert late.status_code == http.get("/ready").status_code == http.get("/health").status_code == 503
        assert "boom" in late.json()["error"]["message"]
        assert http.get("/metrics").status_code == 200


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 200}),
    ],
)
def test_streams_of_other_apis_end_with_an_error_too(
    checkpoint: Callable[..., Path], path: str, fields: dict[str, Any]
) -> None:
    loaded = load(Plan(model=str(checkpoint("llama")), max_len=256), name=NAME)
    engine = loaded.service.engine
    engine.scheduler = Broken(engine.scheduler, after=1)
    with BackgroundServer(loaded) as url:
        reply = httpx.post(f"{url}{path}", json={"model": NAME, "stream": True, **fields}, timeout=60)
    last = events(reply)[-1]
    assert "event: error\n" in reply.text
    assert (last["type"], last["error"]["type"]) == ("error", "server_error")
