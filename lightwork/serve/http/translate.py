"""From a request body to engine requests.

Defaults filled in, limits checked, what cannot be done refused by name.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lightwork.decode.constraints import Constraint
from lightwork.decode.sampling import Sampling, usual
from lightwork.errors import RangeError
from lightwork.models.pooling import Pooling
from lightwork.models.tokenizer import Tokenizer
from lightwork.serve.http.constraints import constraint_of
from lightwork.serve.http.conversation import chat_ids, encode
from lightwork.serve.http.errors import HttpError, refused
from lightwork.serve.http.schemas import (
    Body,
    ChatBody,
    CompletionBody,
    Lenient,
    Message,
    Text,
    TokenizeBody,
)
from lightwork.serve.http.tool_grammar import chat_constraint
from lightwork.serve.http.tools import check_tools
from lightwork.serve.sequence import Limits, Request


def to_itself(prompt: Sequence[int]) -> str:
    """The model a server was opened with answers what is sent to its name."""
    return ""


@dataclass(frozen=True, slots=True)
class Served:
    """What requests are translated against.

    defaults: the model's generation_config.json. variants: other names it can be asked for under, as of now,
    and what `Request.model` is then. route: what it is for a prompt that is sent to `name`. pooling,
    dimensions: of embeddings, see `models.pooling`. ranked: whether sequences are
    served by their priorities.
    """

    name: str
    tokenizer: Tokenizer
    limits: Limits
    vocab_size: int
    kv_tokens: int
    defaults: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, str] = field(default_factory=dict)
    route: Callable[[Sequence[int]], str] = to_itself
    pooling: Pooling = field(default_factory=Pooling)
    dimensions: Sequence[int] = ()
    ranked: bool = False

    @property
    def names(self) -> list[str]:
        return [self.name, *self.variants]


def unknown_fields(body: Lenient, inside: str = "") -> list[str]:
    """Fields that nobody defines. inside: what the body is of, with a dot.

    Raises HttpError for one that its API defines and this server does not do.
    """
    unknown = []
    for name, value in (body.model_extra or {}).items():
        if name in body.unsupported:
            harmless = body.unsupported[name]
            if value is not None and value not in harmless:
                allowed = " or ".join(repr(v) for v in harmless)
                raise refused(inside + name, "is not supported", expected=allowed or "null")
        elif name not in body.hints:
            unknown.append(inside + name)
    for name in type(body).model_fields:
        part = getattr(body, name)
        if isinstance(part, Lenient):
            unknown += unknown_fields(part, f"{inside}{name}.")
    return unknown


def chat_request(body: ChatBody, served: Served) -> Request:
    """One engine request for a conversation."""
    check_tools(body, served.tokenizer.chat_template)
    if body.top_logprobs is not None and not body.logprobs:
        raise refused("top_logprobs", "needs logprobs", expected="logprobs: true")
    variables = _template_variables(body)
    for name in ("reasoning_effort", "parallel_tool_calls"):
        if getattr(body, name) is not None:
            variables[name] = getattr(body, name)
    messages, begun = _begun(body)
    prompt = chat_ids(messages, served.tokenizer, variables, begun=begun)
    asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _request(body, prompt, asked, logprobs, chat_constraint(body), served)


def _begun(body: ChatBody) -> tuple[Sequence[Message], str]:
    """The messages that are answered, and how the answer begins."""
    if body.add_generation_prompt is not None and body.add_generation_prompt == body.continue_final_message:
        raise refused(
            "add_generation_prompt",
            f"is {body.add_generation_prompt} and continue_final_message {body.continue_final_message}",
            expected="one of the two: a reply is begun, or gone on with",
        )
    last = body.messages[-1]
    if not body.continue_final_message:
        return body.messages, ""
    if last.role != "assistant" or not isinstance(last.content, str) or last.tool_calls:
        raise refused(
            "continue_final_message", "needs a last message to go on with", expected="an assistant's text"
        )
    return body.messages[:-1], last.content


def _template_variables(body: ChatBody | TokenizeBody) -> dict[str, Any]:
    """What the chat template is given beside the messages."""
    variables = dict(body.chat_template_kwargs or {})
    for reserved in ("self", "messages", "tools", "add_generation_prompt", "now"):
        if reserved in variables:
            raise refused(
                "chat_template_kwargs", f"may not hold {reserved}", expected="the template's variables"
            )
    return {**variables, "tools": [tool.model_dump(exclude_unset=True) for tool in body.tools or ()]}


def completion_requests(body: CompletionBody, served: Served) -> list[Request]:
    """One engine request per prompt."""
    if body.stream and body.echo and body.logprobs is not None:
        raise refused("echo", "with logprobs cannot be streamed", expected="stream: false")
    prompts = token_lists(texts_of(body.prompt, "prompt"), served, "prompt")
    if len(prompts) * body.n > served.limits.max_waiting:
        raise refused(
            "prompt",
            f"times n asks for {len(prompts) * body.n} continuations",
            expected=f"at most {served.limits.max_waiting}, the length of the queue",
            fix="send several requests",
        )
    asked = body.max_tokens if body.max_tokens is not None else 16
    constraint = constraint_of(body)
    made = []
    for ids in prompts:
        request = _request(body, ids, asked, body.logprobs, constraint, served)
        if body.echo and body.logprobs is not None and request.prompt_logprobs is None:
            request = replace(request, prompt_logprobs=body.logprobs)
        made.append(request)
    return made


def tokenize_ids(body: TokenizeBody, served: Served) -> list[int]:
    """Token ids of a text or of a conversation."""
    if body.messages is not None and body.prompt is None:
        variables = {**_template_variables(body), "add_generation_prompt": body.add_generation_prompt}
        return chat_ids(body.messages, served.tokenizer, variables, add_special=bool(body.add_special_tokens))
    if body.prompt is None or body.messages is not None:
        raise refused("prompt", "or messages, one of the two, must be given", fix="send one of them")
    add_special = body.add_special_tokens is not False
    return encode(body.prompt, served.tokenizer, "prompt", add_special=add_special)


def _request(
    body: Body,
    prompt: list[int],
    asked: int | None,
    logprobs: int | None,
    constraint: Constraint | None,
    served: Served,
) -> Request:
    if body.stream_options is not None and not body.stream:
        raise refused("stream_options", "needs stream", expected="stream: true")
    if body.prompt_logprobs is not None and body.stream:
        raise refused("prompt_logprobs", "cannot be streamed", expected="stream: false")
    if body.n > served.limits.max_waiting:
        raise refused(
            "n", f"is {body.n}", expected=f"at most {served.limits.max_waiting}, the queue's length"
        )
    if body.priority and not served.ranked:
        raise refused(
            "priority",
            f"is {body.priority}, and this server has none",
            expected="0",
            fix="lightwork serve MODEL --use 'ContextSwitch(policy=Priority())'",
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
        priority=-body.priority,
        model=served.variants[body.model] if body.model in served.variants else served.route(prompt),
        constraint=constraint,
    )


def _sampling(body: Body, logprobs: int | None, served: Served) -> Sampling:
    """What the request leaves open comes from the model's generation config: greedy where that says so."""
    base, bias = usual(served.defaults), _bias(body, served)
    try:
        return Sampling(
            temperature=_or(body.temperature, base.temperature),
            top_p=_or(body.top_p, base.top_p),
            top_k=max(0, base.top_k if body.top_k is None else body.top_k),
            min_p=_or(body.min_p, base.min_p),
            seed=body.seed if body.seed is not None else secrets.randbits(53),
            frequency_penalty=body.frequency_penalty,
            presence_penalty=body.presence_penalty,
            repetition_penalty=_or(body.repetition_penalty, base.repetition_penalty),
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


def texts_of(given: Text, field: str, most: int = 256) -> list[str | list[int]]:
    """What a field holds: one text or several, as strings or as token ids."""
    texts: list[str | list[int]]
    if isinstance(given, str):
        texts = [given]
    elif given and isinstance(given[0], int):
        texts = [[t for t in given if isinstance(t, int)]]
    else:
        texts = [t for t in given if not isinstance(t, int)]
    if not 1 <= len(texts) <= most:
        raise refused(
            field, f"holds {len(texts)} texts", expected=f"1 to {most}", fix="send several requests"
        )
    return texts


def token_lists(
    texts: Sequence[str | list[int]], served: Served, field: str, *, add_special: bool = True
) -> list[list[int]]:
    """The tokens of each text of a field."""
    made: list[list[int]] = []
    for text in texts:
        known = (
            encode(text, served.tokenizer, field, add_special=add_special) if isinstance(text, str) else text
        )
        if not known or not all(0 <= t < served.vocab_size for t in known):
            raise refused(
                field, "is empty or holds unknown tokens", expected=f"ids below {served.vocab_size}"
            )
        made.append(known)
    return made
