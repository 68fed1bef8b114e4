"""Every request field is used, refused by name, or named as ignored; no value makes the server fail."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from lightwork.models.tokenizer import Tokenizer
from lightwork.serve.http.main import Loaded
from lightwork.serve.http.schemas import (
    IGNORED,
    UNSUPPORTED,
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    StreamOptions,
)

NAME = "tiny"
CHAT = {"model": NAME, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXT = {"model": NAME, "prompt": "hi", "max_tokens": 2}
HALF = "\ud800"


def post(http: httpx.Client, body: dict[str, Any], path: str = "") -> httpx.Response:
    path = path or ("/v1/chat/completions" if "messages" in body else "/v1/completions")
    return http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})


def refusal(http: httpx.Client, body: dict[str, Any], path: str = "") -> dict[str, Any]:
    reply = post(http, body, path)
    assert reply.status_code == 400, reply.text
    error: dict[str, Any] = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "\n  expected: " in error["message"]
    assert "\n  try: " in error["message"]
    return error


def test_every_field_openai_defines_is_known_here() -> None:
    from openai.types import completion_create_params as completions
    from openai.types.chat import ChatCompletionStreamOptionsParam
    from openai.types.chat import completion_create_params as chat

    theirs = set(chat.CompletionCreateParamsBase.__annotations__)
    assert theirs <= set(ChatBody.model_fields) | set(UNSUPPORTED) | IGNORED
    theirs = set(completions.CompletionCreateParamsBase.__annotations__)
    assert theirs <= set(CompletionBody.model_fields) | set(UNSUPPORTED) | IGNORED
    from openai.types.embedding_create_params import EmbeddingCreateParams

    theirs = set(EmbeddingCreateParams.__annotations__)
    assert theirs <= set(EmbeddingBody.model_fields) | set(EmbeddingBody.unsupported) | IGNORED
    assert set(ChatCompletionStreamOptionsParam.__annotations__) <= set(StreamOptions.model_fields)


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_an_unsupported_field_is_refused_unless_it_asks_for_nothing(http: httpx.Client, name: str) -> None:
    for harmless in (None, *UNSUPPORTED[name]):
        assert post(http, {**CHAT, name: harmless}).status_code == 200
    assert refusal(http, {**CHAT, name: "something"})["param"] == name


def test_null_stands_for_a_field_left_out(http: httpx.Client) -> None:
    for body, fields in ((CHAT, ChatBody.model_fields), (TEXT, CompletionBody.model_fields)):
        left_out = {name: None for name in fields if name not in body}
        reply = post(http, {**body, **left_out})
        assert reply.status_code == 200, reply.text
        assert "x-lightwork-ignored" not in reply.headers
    assert refusal(http, {**TEXT, "prompt": None}, "/v1/completions")["param"] == "prompt"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stream", "banana"),
        ("stream_options", "x"),
        ("stop", 5),
        ("n", 0),
        ("n", 200),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("min_p", 2),
        ("frequency_penalty", 3),
        ("repetition_penalty", 0),
        ("logit_bias", {"9" * 5000: 1}),
        ("logit_bias", {HALF: 1}),
        ("logit_bias", {"65": 1000}),
        ("seed", "x"),
        ("priority", 0.5),
    ],
    ids=lambda v: str(v)[:20].encode("ascii", "replace").decode(),
)
def test_a_wrong_value_names_its_field(http: httpx.Client, field: str, value: object) -> None:
    for body in (CHAT, TEXT):
        error = refusal(http, {**body, field: value})
        assert error["param"].split(".")[0] == field
        assert field in error["message"]


def test_a_priority_is_refused_where_nobody_is_served_by_it(http: httpx.Client) -> None:
    for body in (CHAT, TEXT):
        assert post(http, {**body, "priority": 0}).status_code == 200
        error = refusal(http, {**body, "priority": -1})
        assert error["param"] == "priority"
        assert "ContextSwitch(policy=Priority())" in error["message"]


def test_half_a_surrogate_pair_is_refused_or_harmless(http: httpx.Client) -> None:
    parts = [{"type": "text", "text": HALF}]
    assert refusal(http, {**TEXT, "prompt": HALF})["param"] == "prompt"
    assert refusal(http, {**TEXT, "prompt": ["a", HALF]})["param"] == "prompt"
    assert refusal(http, {**CHAT, "messages": [{"role": "user", "content": parts}]})["param"] == "messages"
    assert refusal(http, {"prompt": HALF}, "/tokenize")["param"] == "prompt"
    assert post(http, {**CHAT, "model": HALF}).status_code == 404
    for field in ("user", "stop", "reasoning_effort", HALF):
        assert post(http, {**CHAT, field: HALF}).status_code in (200, 400)


@pytest.mark.parametrize("name", ["self", "messages", "tools", "add_generation_prompt", "now"])
def test_template_variables_cannot_replace_arguments(http: httpx.Client, name: str) -> None:
    assert name in refusal(http, {**CHAT, "chat_template_kwargs": {name: 1}})["message"]


def test_parallel_tool_calls_and_reasoning_effort_reach_the_template(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def chat_text(self: Tokenizer, messages: object, **variables: Any) -> str:
        seen.update(variables)
        return "hi"

    monkeypatch.setattr(Tokenizer, "chat_text", chat_text)
    tools = [{"type": "function", "function": {"name": "f"}}]
    extra = {"parallel_tool_calls": False, "reasoning_effort": "low", "tools": tools, "tool_choice": "none"}
    assert post(http, {**CHAT, **extra, "chat_template_kwargs": {"think": 1}}).status_code == 200
    assert seen["parallel_tool_calls"] is False
    assert (seen["reasoning_effort"], seen["think"], seen["tools"]) == ("low", 1, tools)


def test_a_final_message_is_gone_on_with(http: httpx.Client) -> None:
    messages = [*CHAT["messages"], {"role": "assistant", "content": "Hm"}]
    more = {"temperature": 0, "max_tokens": 8, "add_generation_prompt": False, "continue_final_message": True}
    rest = post(http, {**CHAT, **more, "messages": messages}).json()["choices"][0]["message"]["content"]
    asked = post(http, {"messages": CHAT["messages"]}, "/tokenize").json()["tokens"]
    begun = post(http, {"prompt": "Hm", "add_special_tokens": False}, "/tokenize").json()["tokens"]
    text = {**TEXT, "prompt": [*asked, *begun], "temperature": 0, "max_tokens": 8}
    assert post(http, text).json()["choices"][0]["text"] == rest
    for wrong in (
        {**more, "messages": CHAT["messages"]},
        {**more, "messages": messages, "add_generation_prompt": True},
        {"add_generation_prompt": False},
    ):
        assert "continue_final_message" in refusal(http, {**CHAT, **wrong})["message"]


def test_tokens_are_named_by_their_ids_where_that_is_asked_for(http: httpx.Client) -> None:
    how = {**CHAT, "logprobs": True, "top_logprobs": 2, "temperature": 0}
    texts, ids = (
        post(http, {**how, "return_tokens_as_token_ids": as_ids}).json()["choices"][0]["logprobs"]["content"]
        for as_ids in (False, True)
    )
    assert [entry["bytes"] for entry in ids] == [entry["bytes"] for entry in texts]
    for entry in ids:
        assert all(one["token"].startswith("token_id:") for one in (entry, *entry["top_logprobs"]))


def test_developers_speak_as_the_system_where_a_template_does_not_know_them(http: httpx.Client) -> None:
    said = [
        post(http, {"messages": [{"role": role, "content": "Be brief"}]}, "/tokenize").json()["tokens"]
        for role in ("developer", "system", "user")
    ]
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize("field", ["function_call", "audio"])
def test_what_of_a_message_no_template_reads_is_refused(http: httpx.Client, field: str) -> None:
    messages = [*CHAT["messages"], {"role": "assistant", "content": "x", field: {"name": "f"}}]
    assert refusal(http, {**CHAT, "messages": messages})["param"] == "messages"


def test_tokenize_says_what_a_chat_with_tools_is_made_of(http: httpx.Client) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = {**CHAT, "tools": tools}
    told = post(http, {"messages": CHAT["messages"], "tools": tools, "return_token_strs": True}, "/tokenize")
    assert told.json()["count"] == post(http, body).json()["usage"]["prompt_tokens"]
    assert "".join(told.json()["token_strs"]).count('"name": "f"') == 1
    plain = {"messages": CHAT["messages"], "add_generation_prompt": False}
    assert post(http, plain, "/tokenize").json()["count"] < told.json()["count"]
    bare = post(http, {"prompt": "x", "add_special_tokens": False}, "/tokenize").json()["count"]
    assert bare <= post(http, {"prompt": "x"}, "/tokenize").json()["count"]


def test_unknown_fields_are_named_wherever_they_are(http: httpx.Client) -> None:
    reply = post(http, {**CHAT, "stream": True, "stream_options": {"zork": 1, "include_obfuscation": False}})
    assert reply.headers["x-lightwork-ignored"] == "stream_options.zork"
    reply = post(http, {"prompt": "x", "zork": 1}, "/tokenize")
    assert reply.headers["x-lightwork-ignored"] == "zork"
    assert post(http, {"prompt": "x", "model": "other"}, "/tokenize").status_code == 404


def test_prompt_logprobs_are_shown_or_refused(http: httpx.Client) -> None:
    reply = post(http, {**CHAT, "prompt_logprobs": 1}).json()
    assert len(reply["prompt_logprobs"]) == reply["usage"]["prompt_tokens"]
    for body in (CHAT, TEXT):
        assert refusal(http, {**body, "prompt_logprobs": 1, "stream": True})["param"] == "prompt_logprobs"


def test_what_the_queue_can_never_hold_is_refused_for_good(http: httpx.Client) -> None:
    assert refusal(http, {**TEXT, "prompt": ["a"] * 256, "n": 100})["param"] == "prompt"


def test_a_refused_request_was_never_begun(http: httpx.Client, loaded: Loaded) -> None:
    before = sum(s.kind == "arrive" for s in loaded.trace.spans)
    echo = {**TEXT, "echo": True, "stream": True, "logprobs": 1}
    assert refusal(http, echo)["param"] == "echo"
    assert sum(s.kind == "arrive" for s in loaded.trace.spans) == before


def test_several_prompts_stream_side_by_side(http: httpx.Client) -> None:
    body = {
        **TEXT,
        "prompt": ["Hello", "Bye"],
        "n": 2,
        "temperature": 0,
        "max_tokens": 20,
        "ignore_eos": True,
    }
    asked = {**body, "echo": True}
    whole = [c["text"] for c in post(http, asked).json()["choices"]]
    assert [t[:3] for t in whole] == ["Hel", "Hel", "Bye", "Bye"]
    pieces = [""] * 4
    order = []
    for line in post(http, {**asked, "stream": True}).text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                pieces[choice["index"]] += choice["text"]
                order.append(choice["index"])
    assert pieces == whole
    assert order.index(2) < len(order) - 1 - order[::-1].index(0)


def test_streamed_logprobs_continue_their_offsets(http: httpx.Client) -> None:
    body = {**TEXT, "logprobs": 1, "temperature": 0, "max_tokens": 8, "ignore_eos": True}
    whole = post(http, body).json()["choices"][0]["logprobs"]
    offsets = []
    for line in post(http, {**body, "stream": True}).text.splitlines():
        if line.startswith("data: {"):
            offsets += (json.loads(line[6:])["choices"][0]["logprobs"] or {"text_offset": []})["text_offset"]
    assert offsets == whole["text_offset"]


def test_usage_counts_what_was_cached_of_every_prompt_once(http: httpx.Client) -> None:
    body = {**TEXT, "prompt": [[7] * 70, [8] * 130], "n": 2}
    post(http, body)
    usage = post(http, body).json()["usage"]
    assert usage["prompt_tokens"] == 200
    assert usage["prompt_tokens_details"]["cached_tokens"] == 64 + 128  # whole blocks of 64


def test_timings_come_with_the_last_piece_and_a_seed_to_have_it_again(http: httpx.Client) -> None:
    body = {**TEXT, "max_tokens": 12, "temperature": 1.0}
    events = [
        json.loads(line[6:])
        for line in post(http, {**body, "stream": True}).text.splitlines()
        if line.startswith("data: {")
    ]
    assert ["timings" in e for e in events] == [False] * (len(events) - 1) + [True]
    again = post(http, {**body, "seed": events[-1]["timings"]["seed"]}).json()
    assert "".join(e["choices"][0]["text"] for e in events) == again["choices"][0]["text"]


def test_a_long_prompt_does_not_stop_the_others(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    encoding, go_on = threading.Event(), threading.Event()
    encode = Tokenizer.encode

    def slow(self: Tokenizer, text: str, *, add_special: bool = False) -> list[int]:
        encoding.set()
        assert go_on.wait(60)
        return encode(self, text, add_special=add_special)

    monkeypatch.setattr(Tokenizer, "encode", slow)
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(post, http, {**TEXT, "prompt": "word " * 10_000})
        assert encoding.wait(60)
        try:
            assert httpx.get(http.base_url.join("/health"), timeout=20).status_code == 200
        finally:
            go_on.set()
        assert reply.result().status_code == 400
