"""A real server is sent real signals while real clients use it."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from os import killpg
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from lightwork.models import read_shape
from lightwork.models.peft import read_adapter

pytestmark = pytest.mark.multiproc

Make = Callable[..., Path]
NAME = "tiny"
PATH = "/v1/completions"
TOKENS = 3000
BODY = {"model": NAME, "prompt": "x", "max_tokens": TOKENS, "ignore_eos": True}
STREAMED = {**BODY, "stream": True, "stream_options": {"include_usage": True}}


class Running:
    """A server, and what it says."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said = ""
        self.url = self.hear(r"(http://\S+)/v1 ")[1]

    @property
    def _errors(self) -> IO[str]:
        assert self.process.stderr is not None
        return self.process.stderr

    def hear(self, pattern: str) -> re.Match[str]:
        """Read what it says until that."""
        for line in self._errors:
            self.said += line
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"it never said {pattern}: {self.said}")

    def end(self) -> int:
        self.said += self._errors.read()
        return self.process.wait(60)


@contextmanager
def served(model: Path, *options: str) -> Iterator[Running]:
    """With its own process group: what it starts is signalled and ends with it."""
    asked = [sys.executable, "-m", "lightwork", "serve", str(model), "--port", "0", "--name", NAME, *options]
    pipe = subprocess.PIPE
    with subprocess.Popen(asked, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            yield Running(process)
        finally:
            if process.poll() is None:
                killpg(process.pid, signal.SIGKILL)


@contextmanager
def slow_upload(url: str) -> Iterator[socket.socket]:
    """A request that keeps a server from ending: the last byte of its body is still to come."""
    body = json.dumps(BODY).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    at = urlsplit(url)
    with socket.create_connection((at.hostname, at.port), timeout=60) as caller:
        caller.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:-1])
        yield caller


def until_refused(http: httpx.Client) -> httpx.Response:
    """What /health says once the server takes no requests."""
    while (reply := http.get("/health")).status_code == 200:
        assert reply.json() == {"status": "alive"}
    return reply


def until_told(http: httpx.Client, figure: str) -> None:
    while not re.search(figure, http.get("/metrics").text):
        pass


def test_who_was_accepted_is_served_and_who_comes_is_sent_on(checkpoint: Make) -> None:
    """Also who waits in a queue, and by engines that get the signal too, as from systemd."""
    folder = checkpoint("llama", max_position_embeddings=4096)
    options = ("--use", "Replicas(copies=2)", "--kv-memory", "1.5MB", "--drain-timeout", "600")
    with (
        served(folder, *options) as server,
        httpx.Client(base_url=server.url, timeout=120) as http,
        ThreadPoolExecutor(16) as callers,
        http.stream("POST", PATH, json=STREAMED) as first,
        slow_upload(server.url) as upload,
    ):
        lines = first.iter_lines()
        assert next(lines).startswith("data: ")
        asked = [{**BODY, "prompt": f"{i}".ljust(900, "x"), "max_tokens": 1000} for i in range(16)]
        others = [callers.submit(http.post, PATH, json=body) for body in asked]
        while not re.search(r"num_requests_waiting [1-9]", http.get("/metrics").text):
            assert not all(other.done() for other in others)
        killpg(server.process.pid, signal.SIGTERM)
        accepted = int(server.hear(r"draining (\d+) requests for at most 600 s")[1])
        assert accepted > 1
        refused = [until_refused(http), http.get("/ready"), http.post(PATH, json=BODY)]
        with (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
            pytest.raises(openai.InternalServerError, match="shutting down") as told,
        ):
            client.completions.create(model=NAME, prompt="x")
        for reply in (*refused, told.value.response):
            assert reply.status_code == 503
            assert reply.headers["retry-after"] == "5"
            assert reply.headers["connection"] == "close"
            assert reply.json()["error"]["code"] == "NotReadyError"
        assert http.get("/metrics").status_code == 200
        said = [line for line in lines if line]
        assert said[-1] == "data: [DONE]"
        assert f'"completion_tokens": {TOKENS},' in said[-2]
        replies = [other.result() for other in others]
        answered = [reply.json() for reply in replies if reply.status_code != 503]
        assert len(answered) >= accepted - 1  # one of them is streamed
        assert {reply["usage"]["completion_tokens"] for reply in answered} == {1000}
        assert server.process.poll() is None
        upload.sendall(b"}")
        assert upload.recv(1000).startswith(b"HTTP/1.1 503 ")
        assert server.end() == 0
    assert "Traceback" not in server.said


def test_after_the_limit_requests_end_with_an_error(checkpoint: Make) -> None:
    folder = checkpoint("llama", max_position_embeddings=1 << 17)
    long = {**BODY, "max_tokens": 100_000}
    with (
        served(folder, "--drain-timeout", "0.1") as server,
        httpx.Client(base_url=server.url, timeout=120) as http,
        ThreadPoolExecutor(1) as callers,
        http.stream("POST", PATH, json={**long, "stream": True}) as streamed,
        slow_upload(server.url),
    ):
        lines = streamed.iter_lines()
        assert next(lines).startswith("data: ")
        whole = callers.submit(http.post, PATH, json=long)
        until_told(http, r"num_requests_running 2")
        server.process.send_signal(signal.SIGINT)
        server.hear("3 requests were not done in 0.1 s and end here")
        assert whole.result().status_code == 503
        assert "before the reply was complete" in whole.result().json()["error"]["message"]
        *_, event, data = (line for line in lines if line)
        assert event == "event: error"
        assert "before the reply was complete" in data
        assert server.end() == 0


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once(checkpoint: Make, second: signal.Signals) -> None:
    with (
        served(checkpoint("llama"), "--drain-timeout", "3600") as server,
        httpx.Client(base_url=server.url, timeout=120) as http,
        slow_upload(server.url),
    ):
        server.process.send_signal(signal.SIGTERM)
        until_refused(http)
        server.process.send_signal(second)
        assert server.end() == -second


def test_what_was_trained_so_far_is_kept(checkpoint: Make, tmp_path: Path) -> None:
    """In the middle of the first epoch."""
    folder, data, out = checkpoint("llama"), tmp_path / "examples.jsonl", tmp_path / "mine"
    data.write_text("".join(json.dumps({"text": f"the number {i}"}) + "\n" for i in range(20_000)))
    tuning = f"LoraTuning(data='{data}', out='{out}', rank=2, batch=1)"
    with (
        served(folder, "--use", tuning, "--use", "CoServe(slo_s=1.0)") as server,
        httpx.Client(base_url=server.url, timeout=120) as http,
    ):
        until_told(http, r"training_loss [1-9]")
        assert [*out.iterdir()] == []
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0
    assert "training ends here; what was trained so far is kept" in server.said
    assert re.search(r"  kept after update \d+   loss [\d.]+   [\d,]+ tokens in all\n", server.said)
    assert read_adapter(out, read_shape(str(folder))).rank == 2
