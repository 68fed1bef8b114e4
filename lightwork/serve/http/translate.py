"""From a request body to engine requests.

Defaults filled in, limits checked, what cannot be done refused by name.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightwork.decode.sampling import Sampling
from lightwork.models.tokenizer import Tokenizer
from lightwork.runtime.clock import local_date
from lightwork.serve.http.errors import refused
from lightwork.serve.http.schemas import IGNORED, UNSUPPORTED, Body, ChatBody, CompletionBody, Message
from lightwork.serve.sequence import Limits, Request


@dataclass(frozen=True, slots=True)
class Served:
    """What requests are translated against. defaults: the model's generation_config.json."""

    name: str
    tokenizer: Tokenizer
    limits: Limits
    vocab_size: int
    kv_tokens: int
    defaults: Mapping[str, Any] = field(default_factory=dict)


def unknown_fields(body: Body) -> list[str]:
    """Fields that nobody defines.

    Raises HttpError for one that OpenAI defines and this server does not do.
    """
    unknown = []
    for name, value in (body.model_extra or {}).items():
        if name in UNSUPPORTED:
            if value is not None and value != UNSUPPORTED[name]:
                raise refused(name, "is not supported", expected=f"{UNSUPPORTED[name]!r}")
        elif name not in IGNORED:
            unknown.append(name)
    return unknown


def chat_request(body: ChatBody, served: Served) -> Request:
    """One engine request for a conversation."""
    if body.tools and body.tool_choice != "none":
        raise refused("tools", "are not supported yet", expected='tool_choice "none"')
    if body.tool_choice not in (None, "none", "auto"):
        raise refused("tool_choice", "is not supported yet", expected='"none"')
    if body.top_logprobs is not None and not body.logprobs:
        raise refused("top_logprobs", "needs logprobs", expected="logprobs: true")
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        variables["reasoning_effort"] = body.reasoning_effort
    for reserved in ("self", "messages", "tools", "add_generation_prompt", "now"):
        if reserved in variables:
            raise refused("chat_template_kwargs", f"may not hold {reserved}")
    messages = [message_dict(m) for m in body.messages]
    prompt = served.tokenizer.chat(messages, tools=body.tools, now=local_date(), **variables)
    asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _request(body, prompt, asked, logprobs, served)


def completion_requests(body: CompletionBody, served: Served) -> list[Request]:
    """One engine request per prompt."""
    asked = body.max_tokens if body.max_tokens is not None else 16
    if body.stream and body.echo and body.logprobs is not None:
        raise refused("echo", "with logprobs cannot be streamed", expected="stream: false")
    made = []
    for prompt in _prompts(body, served):
        request = _request(body, prompt, asked, body.logprobs, served)
        if body.echo and body.logprobs is not None and request.prompt_logprobs is None:
            request = _with_prompt_logprobs(request, body.logprobs)
        made.append(request)
    return made


def _with_prompt_logprobs(request: Request, num: int) -> Request:
    return Request(
        prompt=request.prompt,
        max_tokens=request.max_tokens,
        sampling=request.sampling,
        stop_ids=request.stop_ids,
        n=request.n,
        prompt_logprobs=num,
    )


def _request(
    body: Body, prompt: list[int], asked: int | None, logprobs: int | None, served: Served
) -> Request:
    kind = (body.response_format or {}).get("type", "text")
    if kind != "text":
        raise refused("response_format", f"{kind!r} is not supported yet", expected='{"type": "text"}')
    if body.stream_options is not None and not body.stream:
        raise refused("stream_options", "needs stream", expected="stream: true")
    if body.stream and body.prompt_logprobs is not None:
        raise refused("prompt_logprobs", "cannot be streamed", expected="stream: false")
    room = min(served.limits.max_len, served.kv_tokens) - len(prompt)
    return Request(
        prompt=tuple(prompt),
        max_tokens=asked if asked is not None else max(1, room),
        sampling=_sampling(body, logprobs, served),
        stop_ids=frozenset() if body.ignore_eos else served.tokenizer.eos_ids,
        n=body.n,
        prompt_logprobs=body.prompt_logprobs,
    )


def _sampling(body: Body, logprobs: int | None, served: Served) -> Sampling:
    """What the request leaves open comes from the model's generation config: greedy where that says so."""
    defaults = served.defaults
    usual = 0.0 if defaults.get("do_sample") is False else float(defaults.get("temperature") or 1.0)
    top_k = body.top_k if body.top_k is not None else int(defaults.get("top_k") or 0)
    return Sampling(
        temperature=usual if body.temperature is None else body.temperature,
        top_p=float(defaults.get("top_p") or 1.0) if body.top_p is None else body.top_p,
        top_k=max(0, top_k),
        min_p=body.min_p,
        seed=body.seed if body.seed is not None else secrets.randbits(53),
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=_bias(body, served),
        logprobs=logprobs,
    )


def _bias(body: Body, served: Served) -> tuple[tuple[int, float], ...]:
    bias = []
    for key, value in (body.logit_bias or {}).items():
        if not key.isdecimal() or int(key) >= served.vocab_size:
            raise refused(
                "logit_bias", f"names the token {key[:40]!r}", expected=f"0 to {served.vocab_size - 1}"
            )
        bias.append((int(key), value))
    return tuple(bias)


def _prompts(body: CompletionBody, served: Served) -> list[list[int]]:
    prompt = body.prompt
    texts: list[str | list[int]]
    if isinstance(prompt, str):
        texts = [prompt]
    elif prompt and isinstance(prompt[0], int):
        texts = [[t for t in prompt if isinstance(t, int)]]
    else:
        texts = [t for t in prompt if not isinstance(t, int)]
    if not 1 <= len(texts) <= 256:
        raise refused(
            "prompt", f"holds {len(texts)} prompts", expected="1 to 256", fix="send several requests"
        )
    made: list[list[int]] = []
    for text in texts:
        ids = served.tokenizer.encode(text, add_special=True) if isinstance(text, str) else text
        if not ids or not all(0 <= t < served.vocab_size for t in ids):
            raise refused(
                "prompt", "is empty or holds unknown tokens", expected=f"ids below {served.vocab_size}"
            )
        made.append(ids)
    return made


def message_dict(message: Message) -> dict[str, Any]:
    """A message as templates expect it: parts of text joined into one string."""
    content = message.content
    if isinstance(content, list):
        wrong = next((part.type for part in content if part.type != "text"), None)
        if wrong is not None:
            raise refused("messages", f"hold a part of type {wrong[:40]!r}", expected="text")
        content = "".join(part.text or "" for part in content)
    return {**(message.model_extra or {}), "role": message.role, "content": content or ""}
