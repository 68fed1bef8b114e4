"""Replies have the form that was asked for, or the request is refused before a token, by what was wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

NAME = "tiny"
HELLO = [{"role": "user", "content": "hi"}]
CHAT = {"model": NAME, "messages": HELLO, "max_tokens": 120, "seed": 3}
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 9}, "maxItems": 3},
    },
    "required": ["colour", "sizes"],
    "additionalProperties": False,
}
FORMAT: Any = {
    "type": "json_schema",
    "json_schema": {"name": "thing", "strict": True, "schema": SCHEMA},
}


def check(text: str) -> None:
    value = json.loads(text)
    assert set(value) == {"colour", "sizes"}
    assert value["colour"] in ("red", "green")
    assert len(value["sizes"]) <= 3
    assert all(1 <= size <= 9 for size in value["sizes"])


def test_the_openai_client_gets_json_of_its_schema_whole_and_streamed(client: openai.OpenAI) -> None:
    settings: Any = {
        "model": NAME,
        "messages": HELLO,
        "max_tokens": 120,
        "seed": 7,
        "response_format": FORMAT,
    }
    whole = client.chat.completions.create(**settings, n=3)
    assert [choice.finish_reason for choice in whole.choices] == ["stop"] * 3
    for choice in whole.choices:
        check(choice.message.content or "")
    stream = client.chat.completions.create(**settings, stream=True)
    pieces = [chunk.choices[0] for chunk in stream if chunk.choices]
    assert "".join(piece.delta.content or "" for piece in pieces) == whole.choices[0].message.content
    assert pieces[-1].finish_reason == "stop"


WAYS: list[tuple[dict[str, Any], Callable[[str], object]]] = [
    ({"response_format": FORMAT}, check),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, check),
    ({"structured_outputs": {"json": SCHEMA}}, check),
    ({"structured_outputs": {"json": json.dumps(SCHEMA), "disable_fallback": True}}, check),
    ({"guided_json": SCHEMA}, check),
    ({"structured_outputs": {"regex": "[a-f]{3}-\\d+x"}}, re.compile("[a-f]{3}-[0-9]+x").fullmatch),
    ({"guided_regex": "[a-f]{3}"}, re.compile("[a-f]{3}").fullmatch),
    ({"structured_outputs": {"choice": ["north", "south (cold)"]}}, ["north", "south (cold)"].index),
    ({"guided_choice": ["é", "ü"]}, ["é", "ü"].index),
    ({"structured_outputs": {"grammar": 'start: "(" start ")" | "x"'}}, re.compile(r"\(*x\)*").fullmatch),
    ({"guided_grammar": 'root ::= "a" | "b"'}, ["a", "b"].index),
]


@pytest.mark.parametrize(("fields", "good"), WAYS, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_way_to_ask_is_kept_to(
    http: httpx.Client, fields: dict[str, Any], good: Callable[[str], object], temperature: float
) -> None:
    settings = {"temperature": temperature, "ignore_eos": True, **fields}
    reply = http.post("/v1/chat/completions", json={**CHAT, **settings})
    assert reply.status_code == 200, reply.text
    assert "x-lightwork-ignored" not in reply.headers
    (choice,) = reply.json()["choices"]
    if choice["finish_reason"] == "stop":
        assert good(choice["message"]["content"]) is not None or good is check
    asked = {"model": NAME, "prompt": "hi", "max_tokens": 120, "seed": 3, **settings}
    (choice,) = http.post("/v1/completions", json=asked).json()["choices"]
    if choice["finish_reason"] == "stop":
        assert good(choice["text"]) is not None or good is check


def test_text_and_null_ask_for_nothing(http: httpx.Client) -> None:
    plain = http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 5}).json()["choices"]
    for fields in ({"response_format": {"type": "text"}}, {"structured_outputs": None, "guided_regex": None}):
        assert (
            http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 5, **fields}).json()["choices"]
            == plain
        )


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format", "no schema"),
        ({"response_format": {"type": "json_schema", "json_schema": 5}}, "response_format", "no schema"),
        ({"response_format": {"type": "structural_tag"}}, "response_format", "structural_tag"),
        ({"response_format": {}}, "response_format", "None"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "strin"}}}},
            "response_format",
            "strin",
        ),
        (
            {"structured_outputs": {"json": {"uniqueItems": True, "type": "array"}}},
            "structured_outputs",
            "uniqueItems",
        ),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs", "regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "regex and choice"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs", "structural_tag"),
        (
            {"structured_outputs": {"disable_any_whitespace": True, "json": {}}},
            "structured_outputs",
            "whitespace",
        ),
        ({"structured_outputs": {"choice": []}}, "structured_outputs", "choice"),
        ({"structured_outputs": {"choice": ["a", 1]}}, "structured_outputs", "choice"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs", "regex"),
        ({"structured_outputs": {"regex": None}}, "structured_outputs", "nothing"),
        ({"structured_outputs": {"grammar": "start: nowhere"}}, "structured_outputs", "nowhere"),
        ({"guided_regex": "[z-a]"}, "guided_regex", "regex"),
        ({"guided_choice": ["a"], "response_format": FORMAT}, "guided_choice", "one too many"),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_kept_to_is_refused_before_a_token(
    http: httpx.Client, idle: Callable[[], None], fields: dict[str, Any], param: str, words: str, stream: bool
) -> None:
    for path, body in (("chat/completions", CHAT), ("completions", {"model": NAME, "prompt": ["hi", "ho"]})):
        reply = http.post(f"/v1/{path}", json={**body, **fields, "stream": stream})
        assert reply.status_code == 400, reply.text
        error = reply.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert words in error["message"]
        assert "\n  expected: " in error["message"]
        assert "\n  try: " in error["message"]


def test_many_at_once_do_not_disturb_each_other(http: httpx.Client, idle: Callable[[], None]) -> None:
    def ask(i: int) -> tuple[str, str]:
        fields = [{"response_format": FORMAT}, {}, {"guided_regex": f"[0-9]{{{i}}}"}, {"guided_regex": "(b"}][
            i % 4
        ]
        reply = http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 200, "seed": i, **fields})
        if reply.status_code != 200:
            return "refused", str(reply.status_code)
        (choice,) = reply.json()["choices"]
        return choice["finish_reason"], choice["message"]["content"]

    alone = [ask(i) for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(ask, range(16))] == alone
    assert alone[3::4] == [("refused", "400")] * 4
    for _, said in alone[::4]:
        check(said)


def test_a_choice_is_told_with_its_share(client: openai.OpenAI) -> None:
    """As vLLM tells it: of what is allowed, so that the choices' probabilities sum to 1."""
    from math import exp

    settings: Any = {"extra_body": {"structured_outputs": {"choice": ["A", "B", "C"]}}}
    reply = client.chat.completions.create(
        model=NAME,
        messages=HELLO,
        max_tokens=5,
        logprobs=True,
        top_logprobs=5,
        **settings,  # type: ignore[arg-type]
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    (told,) = logprobs.content or []
    assert sorted(top.token for top in told.top_logprobs) == ["A", "B", "C"]
    assert sum(exp(top.logprob) for top in told.top_logprobs) == pytest.approx(1.0)
