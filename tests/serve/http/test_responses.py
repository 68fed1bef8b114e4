"""/v1/responses with the official client: whole, streamed, and what cannot be done refused by name."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

NAME = "tiny"
ASKED: dict[str, Any] = {"model": NAME, "max_output_tokens": 12, "temperature": 0.0}


def test_a_response_says_what_a_chat_says(client: openai.OpenAI) -> None:
    reply = client.responses.create(input="Hello", instructions="Be brief", **ASKED)
    messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hello"}]
    chat = client.chat.completions.create(model=NAME, messages=messages, max_tokens=12, temperature=0.0)  # type: ignore[arg-type]
    assert reply.output_text == chat.choices[0].message.content
    assert reply.usage is not None
    assert chat.usage is not None
    assert reply.usage.input_tokens == chat.usage.prompt_tokens
    assert reply.usage.total_tokens == chat.usage.total_tokens
    assert chat.choices[0].finish_reason == "length"
    assert reply.status == "incomplete"
    assert reply.incomplete_details is not None
    assert reply.incomplete_details.reason == "max_output_tokens"
    assert reply.instructions == "Be brief"


def test_a_streamed_response_is_the_whole_one_in_events(client: openai.OpenAI) -> None:
    whole = client.responses.create(input="Hello", **ASKED)
    events = [*client.responses.create(input="Hello", stream=True, **ASKED)]
    assert [event.sequence_number for event in events] == [*range(len(events))]
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == text
    assert last.response.usage == whole.usage


def test_a_conversation_with_calls_is_the_chat_with_calls(http: httpx.Client) -> None:
    """The same prompt, to the token."""
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
    ]
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"id": "c2", "type": "function", "function": {"name": "f", "arguments": "{}"}},
    ]
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "tool_call_id": "c2", "content": "sun"},
    ]
    ours = http.post("/v1/responses", json={**ASKED, "input": items}).json()
    chat = {"model": NAME, "messages": messages, "max_tokens": 12, "temperature": 0}
    theirs = http.post("/v1/chat/completions", json=chat).json()
    assert ours["usage"]["input_tokens"] == theirs["usage"]["prompt_tokens"]
    assert ours["output"][0]["content"][0]["text"] == theirs["choices"][0]["message"]["content"]


def test_a_response_can_be_held_to_a_schema(client: openai.OpenAI) -> None:
    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "name": "x", "schema": {"enum": ["yes", "no"]}, "strict": True}
    asked = {**ASKED, "input": "Hello", "max_output_tokens": 20, "text": {"format": form}}
    reply = client.responses.create(**asked)
    assert json.loads(reply.output_text) in ("yes", "no")
    assert reply.status == "completed"
    with client.responses.stream(**asked) as stream:
        assert stream.get_final_response().output_text == reply.output_text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input"),
        ({"input": []}, "input"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
    ],
    ids=str,
)
def test_what_is_not_done_is_refused_by_name(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    reply = http.post("/v1/responses", json={**ASKED, "input": "x", **fields})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param


def test_every_field_of_a_response_is_known_and_the_unknown_are_named(http: httpx.Client) -> None:
    from openai.types.responses.response_create_params import ResponseCreateParamsBase

    from lightwork.serve.http.adapters.responses import UNSUPPORTED, ResponsesBody

    theirs = set(ResponseCreateParamsBase.__annotations__)
    assert theirs <= {*ResponsesBody.model_fields, *UNSUPPORTED, *ResponsesBody.hints}
    fields = {"zork": 1, "reasoning": {"effort": "low", "zork": 1}, "store": False, "truncation": "disabled"}
    reply = http.post("/v1/responses", json={**ASKED, "input": "x", **fields})
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-lightwork-ignored"] == "zork, reasoning.zork"
