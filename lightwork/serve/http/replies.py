"""Deltas of the engine as OpenAI's reply objects: whole, or streamed one server-sent event per delta.

The frame of a stream's events is constant, so only the part that changes is encoded for each.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from lightwork.decode.sampling import Pick
from lightwork.models.tokenizer import Tokenizer
from lightwork.serve.http.errors import error_body, log_failure
from lightwork.serve.sequence import Request
from lightwork.serve.service import Delta, Stream, Usage

REASONS = {"stop": "stop", "length": "length", "cancelled": "stop", "error": "stop"}


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
            self.reason = REASONS[delta.reason]
            self.usage = delta.usage


async def collect(streams: Sequence[Stream]) -> list[Choice]:
    """All continuations of several requests, in order. Raises the first error of any."""
    choices: list[Choice] = []
    try:
        for stream in streams:
            own = [Choice(len(choices) + i) for i in range(stream.request.n)]
            async with aclosing(aiter(stream)) as deltas:  # type: ignore[type-var]
                async for delta in deltas:
                    if delta.error is not None:
                        raise delta.error
                    own[delta.index].add(delta)
            choices += own
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


def timings_object(usages: Sequence[Usage | None]) -> dict[str, Any]:
    """Where the time of the longest continuation went, milliseconds, as llama.cpp's users know it."""
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
    }


def chat_logprobs(picks: Sequence[Pick], tokenizer: Tokenizer) -> dict[str, Any]:
    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        text = tokenizer.token_text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

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
        "tokens": texts,
        "token_logprobs": [p.logprob for p in picks],
        "top_logprobs": [{tokenizer.token_text(t): lp for t, lp in p.top} for p in picks],
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

    Openings, deltas, usage if asked, [DONE]. An error ends it with an error event.
    """
    head = json.dumps({**frame, "choices": None})[: -len("null}")]
    requests = [stream.request for stream in streams]
    usages: list[Usage | None] = []
    try:
        for choice in opening:
            yield _event(head, choice, with_usage)
        for stream in streams:
            first = len(usages)
            usages += [None] * stream.request.n
            async with aclosing(aiter(stream)) as deltas:  # type: ignore[type-var]
                async for delta in deltas:
                    if delta.error is not None:
                        raise delta.error
                    at = first + delta.index
                    usages[at] = delta.usage
                    shown = make_choice(delta, at)
                    if shown is not None:
                        yield _event(head, shown, with_usage)
        if with_usage:
            last = {**frame, "choices": [], "timings": timings_object(usages)}
            yield _data({**last, "usage": usage_object(usages, requests)})
        yield b"data: [DONE]\n\n"
    except Exception as error:
        log_failure(error)
        yield b"event: error\n" + _data(error_body(error)[1])
    finally:
        for stream in streams:
            stream.cancel()


def _event(head: str, choice: dict[str, Any], with_usage: bool) -> bytes:
    tail = ',"usage":null}' if with_usage else "}"
    return f"data: {head}[{json.dumps(choice)}]{tail}\n\n".encode()


def _data(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()
