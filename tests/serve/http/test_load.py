"""Many clients, hang-ups, hostile bodies, a full queue, a shutdown: nothing is lost, leaked or hangs."""

from __future__ import annotations

import asyncio
import json
import random
import string
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from lightwork.serve.http.main import BackgroundServer, Loaded, load
from lightwork.serve.plan import Plan

NAME = "tiny"
Idle = Callable[[], None]


async def stream_one(http: httpx.AsyncClient, i: int, hang_up: bool) -> bool:
    """True if the stream came to its [DONE]."""
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": f"question {i}"}],
        "max_tokens": 60,
        "stream": True,
        "ignore_eos": True,
        "seed": i,
    }
    seen = 0
    async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        assert reply.status_code == 200
        async for line in reply.aiter_lines():
            seen += line.startswith("data: {")
            if hang_up and seen > 1 + i % 7:
                return False
            if line == "data: [DONE]":
                return True
    return False


def run_clients(url: str, num: int) -> None:
    async def main() -> list[bool]:
        limits = httpx.Limits(max_connections=num)
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
            return await asyncio.gather(*(stream_one(http, i, i % 2 == 1) for i in range(num)))

    done = asyncio.run(main())
    assert done == [i % 2 == 0 for i in range(num)]


def test_clients_that_hang_up_free_their_memory(url: str, idle: Idle) -> None:
    run_clients(url, 40)


@pytest.mark.slow
def test_two_hundred_clients_of_which_half_hang_up(url: str, idle: Idle) -> None:
    run_clients(url, 200)


def test_a_client_that_leaves_an_unstreamed_request_frees_its_memory(
    url: str, loaded: Loaded, idle: Idle
) -> None:
    async def main() -> None:
        body = {"model": NAME, "prompt": "x", "max_tokens": 250, "ignore_eos": True, "n": 8}
        async with httpx.AsyncClient(base_url=url) as http:
            task = asyncio.ensure_future(http.post("/v1/completions", json=body))
            while await loaded.service.ask(lambda e: not e.running):
                pass
            task.cancel()
            while await loaded.service.ask(lambda e: e.num_unfinished):
                pass

    asyncio.run(main())
    finished = [s for s in loaded.trace.spans if s.kind == "finish"][-8:]
    assert "cancelled" in {s.args["reason"] for s in finished if s.args}


FIELDS = """
temperature top_p top_k min_p seed n stop max_tokens max_completion_tokens frequency_penalty
ignore_eos presence_penalty repetition_penalty logit_bias stream stream_options logprobs
top_logprobs echo prompt_logprobs response_format tools tool_choice parallel_tool_calls
reasoning_effort chat_template_kwargs user store audio messages prompt model nonsense
best_of suffix verbosity service_tier modalities moderation metadata
structured_outputs guided_json guided_regex guided_choice guided_grammar
"""


def junk(rng: random.Random, depth: int = 0) -> object:
    """Any JSON value, from plausible to absurd."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind == 1:
        return rng.choice([0, 1, -1, 2**31, -(2**63), 2**70, 1e308, -0.5, 0.3, 1e-9])
    if kind == 2:
        return "".join(rng.choices(string.printable + "é漢\x00\ud800", k=rng.randrange(12)))
    if kind in (3, 4, 5):
        return rng.choice(["user", "text", "", NAME, "auto", "none", {"type": "text"}, [], {}])
    if kind == 6:
        return [junk(rng, depth + 1) for _ in range(rng.randrange(4))]
    names = ("type", "text", "role", "content", "self", "now", "65", "9" * 5000, "json", "regex", "schema")
    return {
        rng.choice((*names, str(junk(rng, 9))[:8])): junk(rng, depth + 1) for _ in range(rng.randrange(4))
    }


def bodies(seed: int) -> Iterator[tuple[str, object]]:
    """Endless request bodies, from nearly right to nonsense."""
    rng = random.Random(seed)
    while True:
        is_chat = rng.random() < 0.5
        body: dict[str, object] = {"model": NAME, "max_tokens": 2}
        body |= {"messages": [{"role": "user", "content": "hi"}]} if is_chat else {"prompt": "hi"}
        for field in rng.sample(FIELDS.split(), rng.randrange(4)):
            body[field] = junk(rng)
        path = "/v1/chat/completions" if is_chat else "/v1/completions"
        yield path, (junk(rng) if rng.random() < 0.05 else body)


def fuzz(url: str, num: int, seed: int) -> dict[int, int]:
    """Statuses of hostile requests; each is a 200 or a named 4xx."""
    counts: dict[int, int] = {}
    with httpx.Client(base_url=url, timeout=60) as http:
        for (path, body), _ in zip(bodies(seed), range(num), strict=False):
            reply = http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
            counts[reply.status_code] = counts.get(reply.status_code, 0) + 1
            assert reply.status_code == 200 or 400 <= reply.status_code < 500, (path, body, reply.text)
            if reply.status_code != 200:
                error = reply.json()["error"]
                assert error.keys() == {"message", "type", "param", "code"}, (path, body)
                assert "expected: " in error["message"], (path, body)
    return counts


def test_hostile_bodies_are_answered(url: str, idle: Idle) -> None:
    counts = fuzz(url, 200, seed=1)
    assert counts[200] > 20
    assert counts[400] > 20


@pytest.mark.slow
def test_two_thousand_hostile_bodies_are_answered(url: str, idle: Idle) -> None:
    fuzz(url, 2000, seed=2)


@pytest.fixture
def small(checkpoint: Callable[..., Path]) -> Loaded:
    plan = Plan(model=str(checkpoint("llama")), max_len=256, max_waiting=2, max_seqs=1)
    return load(plan, name=NAME, api_key="secret")


def test_a_full_queue_answers_429_and_a_wrong_key_401(small: Loaded) -> None:
    async def main(url: str) -> list[httpx.Response]:
        headers = {"authorization": "Bearer secret"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
            body = {"model": NAME, "prompt": "x", "max_tokens": 100, "ignore_eos": True}
            return await asyncio.gather(*(http.post("/v1/completions", json=body) for _ in range(12)))

    with BackgroundServer(small) as url:
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.get(f"{url}/health").status_code == 200
        assert httpx.get(f"{url}/v1/models", headers={"x-api-key": "secret"}).status_code == 200
        replies = asyncio.run(main(url))
    refused = [r for r in replies if r.status_code == 429]
    assert refused
    assert {r.status_code for r in replies} == {200, 429}
    assert all(int(r.headers["retry-after"]) >= 1 for r in refused)
    assert refused[0].json()["error"]["type"] == "rate_limit_error"


def test_draining_finishes_what_was_accepted_and_refuses_the_rest(small: Loaded) -> None:
    async def main(url: str) -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        headers = {"authorization": "Bearer secret"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
            body = {"model": NAME, "prompt": "x", "max_tokens": 80, "ignore_eos": True}
            accepted = asyncio.ensure_future(http.post("/v1/completions", json=body))
            while await small.service.ask(lambda e: not e.running):
                pass
            drained = asyncio.ensure_future(small.service.drain())
            while small.service.ready:
                await small.service.ask(lambda e: None)
            late = await http.post("/v1/completions", json=body)
            ready = await http.get("/ready")
            await drained
            return await accepted, late, ready

    with BackgroundServer(small) as url:
        accepted, late, ready = asyncio.run(main(url))
    assert accepted.status_code == 200
    assert accepted.json()["usage"]["completion_tokens"] == 80
    assert late.status_code == ready.status_code == 503
