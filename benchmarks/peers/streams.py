"""Concurrent streams from an OpenAI-compatible server: time to first text, gaps, tokens per second."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from peers.engines import Engine, Serving
from peers.process import PeerError, Process

READY_S, RUN_S = 180.0, 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """One run of all streams. Percentiles are over streams (ttft) and over all gaps (itl), seconds.

    pieces: text pieces per token; 1 where every token streams at once.
    """

    tokens_per_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    itl_p50_s: float
    itl_p99_s: float
    pieces: float


class Server:
    """An engine's own server on loopback; ends with the block."""

    def __init__(self, engine: Engine, serving: Serving, log: Path, environment: dict[str, str]) -> None:
        assert engine.server is not None
        self.name = engine.name
        self._url = f"http://127.0.0.1:{serving.port}/v1"
        self._process = Process(engine.server(serving), environment, log, piped=False)
        try:
            self._model = self._wait_until_ready() or str(serving.model)
        except BaseException:
            self._process.end()
            raise

    def run(self, prompts: list[str], lengths: list[int]) -> Streams:
        """All prompts at once, each to its length. Raises PeerError if a stream fails or comes short."""
        try:
            return asyncio.run(asyncio.wait_for(self._run(prompts, lengths), RUN_S))
        except (TimeoutError, httpx.HTTPError) as error:
            raise PeerError(f"{self.name}: {type(error).__name__} {error}".strip()) from error

    def end(self) -> None:
        self._process.end()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _wait_until_ready(self) -> str:
        """The name of the model; empty where the server lists none before it is asked for one."""
        end = time.monotonic() + READY_S
        while time.monotonic() < end and self._process.child.poll() is None:
            try:
                reply = httpx.get(f"{self._url}/models", timeout=5)
                if reply.status_code == 200:
                    return next((str(model["id"]) for model in reply.json()["data"]), "")
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise PeerError(f"{self.name}'s server did not start: {self._process.last_words()}")

    async def _run(self, prompts: list[str], lengths: list[int]) -> Streams:
        limits = httpx.Limits(max_connections=len(prompts))
        async with httpx.AsyncClient(timeout=RUN_S, limits=limits) as client:
            begin = time.perf_counter()
            jobs = [self._stream(client, p, n) for p, n in zip(prompts, lengths, strict=True)]
            times = await asyncio.gather(*jobs)
            total_s = time.perf_counter() - begin
        ttft = [t[1] - t[0] for t in times]
        gaps = [gap for t in times for gap in np.diff(t[1:])]
        return Streams(
            tokens_per_s=sum(lengths) / total_s,
            ttft_p50_s=float(np.percentile(ttft, 50)),
            ttft_p99_s=float(np.percentile(ttft, 99)),
            itl_p50_s=float(np.percentile(gaps, 50)),
            itl_p99_s=float(np.percentile(gaps, 99)),
            pieces=sum(len(t) - 1 for t in times) / sum(lengths),
        )

    async def _stream(self, client: httpx.AsyncClient, prompt: str, length: int) -> list[float]:
        """When the request was sent, and when each piece of text came."""
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": length,
            "temperature": 0.0,
            "stream": True,
        }
        times = [time.perf_counter()]
        words = 0
        async with client.stream("POST", f"{self._url}/completions", json=body) as reply:
            if reply.status_code != 200:
                raise PeerError(f"{self.name}: {reply.status_code} {(await reply.aread())[:200]!r}")
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    choices = json.loads(line[6:]).get("choices")
                    if choices and choices[0].get("text"):
                        times.append(time.perf_counter())
                        words += choices[0]["text"].count(" ")
        if words != length:
            raise PeerError(f"{self.name} streamed {words} words of {length}")
        return times


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def evict(path: Path) -> None:
    """Drop a model's files from the page cache, so that the next start reads the disk."""
    for file in [path] if path.is_file() else path.iterdir():
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
