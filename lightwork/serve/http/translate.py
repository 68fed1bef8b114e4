"""From a request body to engine requests.

Defaults filled in, limits checked, what cannot be done refused by name.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lightwork.decode.sampling import Sampling
from lightwork.errors import RangeError
from lightwork.models.tokenizer import Tokenizer
from lightwork.runtime.clock import local_date
from lightwork.serve.http.constraints import constraint_of
from lightwork.serve.http.errors import HttpError, refused
from lightwork.serve.http.schemas import (
    IGNORED,
    UNSUPPORTED,
    Body,
    ChatBody,
    CompletionBody,
    Lenient,
    Message,
    TokenizeBody,
)
from lightwork.serve.sequence import Limits, Request


def to_itself(prompt: Sequence[int]) -> str:
    """The model a server was opened with answers what is sent to its name."""
    return ""


@dataclass(frozen=True, slots=True)
class Served:
    """What requests are translated against.

    defaults: the model's generation_config.json. variants: other names it can be asked for under, as of now,
    and what `Request.model` is then. route: what it is for a prompt that is sent to `name`.
    """

    name: str
    tokenizer: Tokenizer
    limits: Limits
    vocab_size: int
    kv_tokens: int
    defaults: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, str] = field(default_factory=dict)
    route: Callable[[Sequence[int]], str] = to_itself

    @property
    def names(self) -> list[str]:
        return [self.name, *self.variants]


def unknown_fields(body: Lenient) -> list[str]:
    """Fields that nobody defines.

    Raises HttpError for one that OpenAI defines and this server does not do.
    """
    unknown = []
    for name, value in (body.model_extra or {}).items():
        if name in UNSUPPORTED:
            harmless = UNSUPPORTED[name]
            if value is not None and value not in harmless:
                allowed = " or ".join(repr(v) for v in harmless)
                raise refused(name, "is not supported", expected=allowed or "null")
        elif name not in IGNORED:
            unknown.append(name)
    if isinstance(body, Body) and body.stream_options is not None:
        unknown += [f"stream_options.{name}" for name in body.stream_options.model_extra or ()]
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
    for name in ("reasoning_effort", "parallel_tool_calls"):
        if getattr(body, name) is not None:
            variables[name] = getattr(body, name)
    for reserved in ("self", "messages", "tools", "add_generation_prompt", "now"):
        if reserved in variables:
            raise refused(
                "chat_template_kwargs", f"may not hold {reserved}", expected="the template's variables"
            )
    prompt = chat_ids(body.messages, served, tools=body.tools, **variables)
    asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _request(body, prompt, asked, logprobs, served)


def chat_ids(messages: list[Message], served: Served, **variables: Any) -> list[int]:
    """Token ids of a conversation as the model's template writes it."""
    written = [message_dict(m) for m in messages]
    try:
        text = served.tokenizer.chat_text(written, now=local_date(), **variables)
    except RecursionError:
        raise refused("messages", "or tools nest too deeply", expected="a few levels") from None
    return _encode(text, served, "messages", add_special=False)


def completion_requests(body: CompletionBody, served: Served) -> list[Request]:
    """One engine request per prompt."""
    if body.stream and body.echo and body.logprobs is not None:
        raise refused("echo", "with logprobs cannot be streamed", expected="stream: false")
    prompts = _prompts(body, served)
    if len(prompts) * body.n > served.limits.max_waiting:
        raise refused(
            "prompt",
            f"times n asks for {len(prompts) * body.n} continuations",
            expected=f"at most {served.limits.max_waiting}, the length of the queue",
            fix="send several requests",
        )
    asked = body.max_tokens if body.max_tokens is not None else 16
    made = []
    for ids in prompts:
        request = _request(body, ids, asked, body.logprobs, served)
        if body.echo and body.logprobs is not None and request.prompt_logprobs is None:
            request = replace(request, prompt_logprobs=body.logprobs)
        made.append(request)
    return made


def tokenize_ids(body: TokenizeBody, served: Served) -> list[int]:
    """Token ids of a text or of a conversation."""
    if body.messages is not None and body.prompt is None:
        return chat_ids(body.messages, served)
    if body.prompt is None or body.messages is not None:
        raise refused("prompt", "or messages, one of the two, must be given", fix="send one of them")
    return _encode(body.prompt, served, "prompt", add_special=body.add_special_tokens)


def _encode(text: str, served: Served, field: str, *, add_special: bool) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise refused(
            field, "hold half a surrogate pair", expected="text", fix="send whole characters"
        ) from None
    return served.tokenizer.encode(text, add_special=add_special)


def _request(
    body: Body, prompt: list[int], asked: int | None, logprobs: int | None, served: Served
) -> Request:
    constraint = constraint_of(body)
    if body.stream_options is not None and not body.stream:
        raise refused("stream_options", "needs stream", expected="stream: true")
    if body.prompt_logprobs is not None and body.stream:
        raise refused("prompt_logprobs", "cannot be streamed", expected="stream: false")
    if body.n > served.limits.max_waiting:
        raise refused(
            "n", f"is {body.n}", expected=f"at most {served.limits.max_waiting}, the queue's length"
        )
    room = min(served.limits.max_len, served.kv_tokens) - len(prompt)
    return Request(
        prompt=tuple(prompt),
        max_tokens=asked if asked is not None else max(1, room),
        sampling=_sampling(body, logprobs, served),
        stop_ids=served.tokenizer.eos_ids if constraint or not body.ignore_eos else frozenset(),
        n=body.n,
        prompt_logprobs=body.prompt_logprobs,
        tenant=body.user,
        model=served.variants[body.model] if body.model in served.variants else served.route(prompt),
        constraint=constraint,
    )


def _sampling(body: Body, logprobs: int | None, served: Served) -> Sampling:
    """What the request leaves open comes from the model's generation config: greedy where that says so."""
    config = served.defaults
    usual = 0.0 if config.get("do_sample") is False else _or(config.get("temperature"), 1.0)
    top_k = body.top_k if body.top_k is not None else int(config.get("top_k") or 0)
    bias = _bias(body, served)
    try:
        return Sampling(
            temperature=_or(body.temperature, usual),
            top_p=_or(body.top_p, _or(config.get("top_p"), 1.0)),
            top_k=max(0, top_k),
            min_p=_or(body.min_p, _or(config.get("min_p"), 0.0)),
            seed=body.seed if body.seed is not None else secrets.randbits(53),
            frequency_penalty=body.frequency_penalty,
            presence_penalty=body.presence_penalty,
            repetition_penalty=_or(body.repetition_penalty, _or(config.get("repetition_penalty"), 1.0)),
            logit_bias=bias,
            logprobs=logprobs,
        )
    except RangeError as error:
        name = error.wrong.partition(" ")[0]
        raise HttpError(
            400, error.wrong, expected=error.expected, fix=f"change {name}", param=name
        ) from error


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else float(value)


def _bias(body: Body, served: Served) -> tuple[tuple[int, float], ...]:
    bias = []
    for key, value in (body.logit_bias or {}).items():
        if len(key) > 10 or not key.isdecimal() or int(key) >= served.vocab_size:
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
        ids = _encode(text, served, "prompt", add_special=True) if isinstance(text, str) else text
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
