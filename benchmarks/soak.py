"""Does a server stay as it is? Mixed load over HTTP, some of it hung up on, and then: memory flat, no block
leaked, no request lost.

    python benchmarks/soak.py --minutes 30

The server runs in this process, its clients in another, so that the memory measured is the server's. The
first third of the time is not judged: caches and allocators fill.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from typing import Any

import httpx
import numpy as np
from _report import report

from lightwork.runtime.clock import WallClock
from lightwork.serve.http.main import BackgroundServer, Loaded, load
from lightwork.serve.plan import Plan

MODEL, CLIENTS, HANG_UPS = "tiny:llama", 8, 0.05
SAMPLE_S, WARM = 1.0, 1 / 3
KV_BYTES, KEPT_SPANS = 64 << 20, 2000
"""Less than a server has by itself: what is bounded should be full soon, or it is taken for a leak."""
BAR_MB_PER_HOUR = 20.0
"""Steeper is a leak. A prompt and its reply hold about 1 KB of tokens and text: one kept for ever, of the
several hundred a second, would be a gigabyte an hour."""
WORDS = ["plan", "the", "trip", "to", "Oslo", "with", "two", "stops", "then", "count", "costs", "why"]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def body(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """One of the requests that users send: chats, completions, tools, other APIs, embeddings."""
    text = " ".join(rng.choices(WORDS, k=rng.randrange(1, 120)))
    messages = [{"role": "user", "content": text}]
    length = rng.randrange(1, 80)
    common: dict[str, Any] = {"model": MODEL, "stream": rng.random() < 0.5, "temperature": rng.choice([0, 1])}
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"messages": messages, "max_tokens": length}),
        ("/v1/chat/completions", {"messages": messages, "max_tokens": length, "tools": [TOOL]}),
        ("/v1/completions", {"prompt": [text, text[::-1]], "n": 2, "max_tokens": length}),
        ("/v1/completions", {"prompt": text, "max_tokens": length, "logprobs": 2}),
        ("/v1/responses", {"input": text, "max_output_tokens": length}),
        ("/v1/messages", {"messages": messages, "max_tokens": length}),
        ("/v1/embeddings", {"input": text}),
        ("/v1/completions", {"prompt": text, "max_tokens": 10**6}),
    ]
    path, fields = rng.choice(kinds)
    return path, {**({"model": MODEL} if path == "/v1/embeddings" else common), **fields}


async def client(
    http: httpx.AsyncClient, rng: random.Random, until_s: float, clock: WallClock
) -> Counter[str]:
    """Sends one request after the other; what became of each."""
    told: Counter[str] = Counter()
    while clock.now() < until_s:
        path, fields = body(rng)
        hang_up = rng.random() < HANG_UPS
        told["sent"] += 1
        try:
            async with http.stream("POST", path, json=fields) as reply:
                if hang_up:
                    async for _ in reply.aiter_raw():
                        break
                    told["hung up"] += 1
                    continue
                said = (await reply.aread()).decode()
        except httpx.HTTPError as error:
            told[f"lost: {type(error).__name__}"] += 1
            continue
        told[_outcome(reply.status_code, said, streamed=bool(fields.get("stream")))] += 1
    return told


def _outcome(status: int, said: str, *, streamed: bool) -> str:
    if status != 200:
        return f"refused: {status}" if status < 500 else f"lost: {status}"
    ends = ("[DONE]", "event: response.", "event: message_stop")
    whole = any(end in said[-4000:] for end in ends) if streamed else True
    return "answered" if whole and "event: error" not in said else "lost: cut short"


async def clients(url: str, seconds: float) -> Counter[str]:
    clock, rng = WallClock(), random.Random(1)
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        rngs = [random.Random(rng.random()) for _ in range(CLIENTS)]
        told = await asyncio.gather(*(client(http, each, seconds, clock) for each in rngs))
    return sum(told, Counter())


def resident_mb() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def check_idle(loaded: Loaded) -> str:
    """What the engine still holds when nobody asks for anything; "" if nothing."""
    engine, told, done = loaded.service.engine, [""], threading.Event()

    async def look() -> None:
        try:
            await engine.drained()
            engine.kv.check()  # type: ignore[union-attr]
            leaked = engine.kv.total - engine.kv.free  # type: ignore[union-attr]
            told[0] = f"{leaked} blocks" if leaked else ""
        except Exception as error:
            told[0] = repr(error)
        finally:
            done.set()

    loaded.service.kernel.post(lambda: loaded.service.kernel.spawn(look(), name="idle?"))
    return told[0] if done.wait(60) else "it did not become idle"


def soak(minutes: float) -> bool:
    plan = Plan(model=MODEL, max_len=1024, max_seqs=32, kv_bytes=KV_BYTES)
    loaded = load(plan, keep_spans=KEPT_SPANS)
    with BackgroundServer(loaded) as url:
        command = [sys.executable, __file__, "--client", url, "--minutes", str(minutes)]
        load_maker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        clock = WallClock()
        samples: list[tuple[float, float]] = []
        while load_maker.poll() is None:
            clock.wait_until(clock.now() + SAMPLE_S)
            samples.append((clock.now(), resident_mb()))
        told: dict[str, int] = json.loads(load_maker.communicate()[0])
        held = check_idle(loaded)
    at_s, used_mb = np.array(samples).T
    judged = at_s > WARM * at_s[-1]
    slope = float(np.polyfit(at_s[judged] / 3600, used_mb[judged], 1)[0])
    lost = told["sent"] - sum(told.get(k, 0) for k in ("answered", "hung up", "refused: 400", "refused: 429"))
    holds = not lost and not held and slope < BAR_MB_PER_HOUR
    report(
        "soak",
        minutes=minutes,
        requests=told,
        lost=lost,
        held=held,
        mb=round(float(used_mb[-1]), 1),
        mb_per_hour=round(slope, 1),
        bar_mb_per_hour=BAR_MB_PER_HOUR,
        holds=holds,
    )
    return holds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--client", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.client:
        print(json.dumps(asyncio.run(clients(asked.client, 60 * asked.minutes))))
        return
    sys.exit(0 if soak(asked.minutes) else 1)


if __name__ == "__main__":
    main()
