"""Deltas of the engine as OpenAI's reply objects: whole, or streamed one server-sent event per delta.

The frame of a stream's events is constant, so only the part that changes is encoded for each.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from lightwork.decode.sampling import Pick
from lightwork.errors import NotReadyError
from lightwork.models.tokenizer import Tokenizer
from lightwork.serve.http.errors import error_body, log_failure
from lightwork.serve.sequence import Request
from lightwork.serve.service import Delta, Stream, Usage


@dataclass(slots=True)
class Choice:
    """One continuation as it grows."""

    index: int
    text: str = ""
    picks: list[Pick] = field(default_factory=list)
    prompt_picks: list[Pick] = field(default_factory=list)
    reason: str | None = None
    usage: Usage | None = None

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.picks += delta.picks
        self.prompt_picks += delta.prompt_picks
        if delta.reason is not None:
            self.reason = delta.reason
            self.usage = delta.usage


async def arriving(streams: Sequence[Stream]) -> AsyncGenerator[tuple[int, Delta], None]:
    """Deltas of several requests as they come, each with the index of its continuation in the reply.

    Raises the first error of any, and NotReadyError where the server ended one before its end.
    """
    if len(streams) == 1:
        async with aclosing(aiter(streams[0])) as deltas:  # type: ignore[type-var]
            async for delta in deltas:
                yield delta.index, _sound(delta)
        return
    inbox: asyncio.Queue[tuple[int, Delta]] = asyncio.Queue()
    firsts = [0, *accumulate(stream.request.n for stream in streams)]
    left = firsts.pop()
    tasks = [asyncio.ensure_future(_pump(s, at, inbox)) for s, at in zip(streams, firsts, strict=True)]
    try:
        while left:
            at, delta = await inbox.get()
            left -= delta.reason is not None
            yield at, _sound(delta)
    finally:
        for task in tasks:
            task.cancel()


async def _pump(stream: Stream, first: int, inbox: asyncio.Queue[tuple[int, Delta]]) -> None:
    async for delta in stream:
        inbox.put_nowait((first + delta.index, delta))


def _sound(delta: Delta) -> Delta:
    if delta.error is not None:
        raise delta.error
    if delta.reason in ("cancelled", "error"):
        raise NotReadyError(
            "the server stopped before the reply was complete",
            expected="a running server",
            fix="send it again",
        )
    return delta


async def collect(streams: Sequence[Stream]) -> list[Choice]:
    """All continuations of several requests, in order. Raises as `arriving` does."""
    choices = [Choice(i) for i in range(sum(stream.request.n for stream in streams))]
    try:
        async with aclosing(arriving(streams)) as deltas:
            async for at, delta in deltas:
                choices[at].add(delta)
    finally:
        for stream in streams:
            stream.cancel()
    return choices


def usage_object(usages: Sequence[Usage | None], requests: Sequence[Request]) -> dict[str, Any]:
    """OpenAI's usage. usages: of all continuations, in order of their index.

    n continuations count their prompt once; what the others find in the cache, the first has put there.
    """
    firsts = [usages[i] for i in accumulate((r.n for r in requests[:-1]), initial=0)]
    num_prompt = sum(len(r.prompt) for r in requests)
    output = sum(u.output_tokens for u in usages if u is not None)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": output,
        "total_tokens": num_prompt + output,
        "prompt_tokens_details": {"cached_tokens": sum(u.cached_tokens for u in firsts if u is not None)},
    }


def timings_object(usages: Sequence[Usage | None], requests: Sequence[Request]) -> dict[str, Any]:
    """Where the time of the longest continuation went, milliseconds, as llama.cpp's users know it.

    seed: of the first continuation, so that a reply asked for without one can be had again.
    """
    known = [u for u in usages if u is not None]
    if not known:
        return {}
    u = max(known, key=lambda u: u.decode_s)
    return {
        "queue_ms": round(u.queue_s * 1e3, 3),
        "prefill_ms": round(u.prefill_s * 1e3, 3),
        "decode_ms": round(u.decode_s * 1e3, 3),
        "tokens_per_s": round((u.output_tokens - 1) / u.decode_s, 2) if u.decode_s > 0 else None,
        "drafted": sum(u.drafted for u in known),
        "accepted": sum(u.accepted for u in known),
        "preempted": sum(u.num_preempted for u in known),
        "seed": requests[0].sampling.seed,
    }


def token_name(token: int, tokenizer: Tokenizer) -> str:
    r"""A token's text. Of one that is no whole characters its bytes, as OpenAI writes them (bytes:\xe2\x82),
    of one without any its number, as vLLM does: no two tokens share a name."""
    text, raw = tokenizer.token_text(token), tokenizer.token_bytes(token)
    if text.encode() != raw:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
    return text or f"token_id:{token}"


def chat_logprobs(picks: Sequence[Pick], tokenizer: Tokenizer, *, as_ids: bool = False) -> dict[str, Any]:
    """as_ids: tokens are named by their ids, so that two of one text can be told apart."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        return {
            "token": f"token_id:{token}" if as_ids else token_name(token, tokenizer),
            "logprob": logprob,
            "bytes": [*tokenizer.token_bytes(token)],
        }

    return {
        "content": [
            {**entry(p.token, p.logprob), "top_logprobs": [entry(t, lp) for t, lp in p.top]} for p in picks
        ],
        "refusal": None,
    }


def completion_logprobs(picks: Sequence[Pick], tokenizer: Tokenizer, offset: int = 0) -> dict[str, Any]:
    """The older shape: parallel lists. offset: characters before the first token."""
    texts = [tokenizer.token_text(p.token) for p in picks]
    return {
        "tokens": [token_name(p.token, tokenizer) for p in picks],
        "token_logprobs": [p.logprob for p in picks],
        "top_logprobs": [{token_name(t, tokenizer): lp for t, lp in p.top} for p in picks],
        "text_offset": [offset + n for n in accumulate((len(t) for t in texts[:-1]), initial=0)][
            : len(texts)
        ],
    }


def prompt_logprobs(prompt: Sequence[int], picks: Sequence[Pick], tokenizer: Tokenizer) -> list[Any]:
    """vLLM's shape: nothing for the first token, then {id: {"logprob", "decoded_token"}} for each."""
    entries: list[Any] = [None] if prompt else []
    for pick in picks:
        known = {pick.token: pick.logprob, **dict(pick.top)}
        entries.append(
            {str(t): {"logprob": lp, "decoded_token": tokenizer.token_text(t)} for t, lp in known.items()}
        )
    return entries


MakeChoice = Callable[[Delta, int], dict[str, Any] | None]
"""The `choices` entry of a delta of the continuation with this index; None when there is nothing to send."""


async def events(
    streams: Sequence[Stream],
    frame: dict[str, Any],
    make_choice: MakeChoice,
    *,
    with_usage: bool,
    opening: Sequence[dict[str, Any]] = (),
) -> AsyncIterator[bytes]:
    """Server-sent events of a reply.

    Openings, deltas, usage if asked, [DONE]. The delta that ends the last continuation has timings. An
    error ends the reply with an error event.
    """
    head = json.dumps({**frame, "choices": None})[: -len("null}")]
    plain = ',"usage":null}' if with_usage else "}"
    requests = [stream.request for stream in streams]
    usages: list[Usage | None] = [None] * sum(request.n for request in requests)
    left = len(usages)
    try:
        for choice in opening:
            yield _event(head, choice, plain)
        async with aclosing(arriving(streams)) as deltas:
            async for at, delta in deltas:
                usages[at] = delta.usage
                left -= delta.reason is not None
                shown = make_choice(delta, at)
                if shown is not None:
                    timings = "" if left else f',"timings":{json.dumps(timings_object(usages, requests))}'
                    yield _event(head, shown, timings + plain)
        if with_usage:
            last = {**frame, "choices": [], "timings": timings_object(usages, requests)}
            yield _data({**last, "usage": usage_object(usages, requests)})
        yield b"data: [DONE]\n\n"
    except Exception as error:
        log_failure(error)
        yield b"event: error\n" + _data(error_body(error)[1])
    finally:
        for stream in streams:
            stream.cancel()


def _event(head: str, choice: dict[str, Any], tail: str) -> bytes:
    return f"data: {head}[{json.dumps(choice)}]{tail}\n\n".encode()


def _data(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()
