"""/v1/responses with the official client: whole, streamed, and what cannot be done refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from lightwork.serve.http.adapters.stored import Stored
from lightwork.serve.http.errors import HttpError
from lightwork.serve.http.main import BackgroundServer, load
from lightwork.serve.plan import Plan

NAME = "tiny"
ASKED: dict[str, Any] = {"model": NAME, "max_output_tokens": 12, "temperature": 0.0}


def templated(checkpoint: Path, folder: Path, template: str) -> Plan:
    """The checkpoint with another chat template."""
    model = folder / "model"
    shutil.copytree(checkpoint, model)
    place = model / "tokenizer_config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "chat_template": template}))
    return Plan(model=str(model), max_len=256)


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
        ({"conversation": "conv_1"}, "conversation"),
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


# -- going on from a response


@pytest.mark.parametrize("streamed", [False, True])
def test_a_response_goes_on_from_one_that_is_kept(client: openai.OpenAI, streamed: bool) -> None:
    """As if the whole conversation had been sent again, but for its instructions."""
    first = client.responses.create(input="Hello", instructions="Be brief", **ASKED)
    asked = {**ASKED, "input": "And?", "previous_response_id": first.id}
    if streamed:
        *_, last = client.responses.create(stream=True, **asked)
        second = last.response
    else:
        second = client.responses.create(**asked)
    assert second.previous_response_id == first.id
    said = {"role": "assistant", "content": first.output_text}
    whole = [{"role": "user", "content": "Hello"}, said, {"role": "user", "content": "And?"}]
    again = client.responses.create(input=whole, **ASKED)  # type: ignore[arg-type]
    assert (second.output_text, second.usage.total_tokens) == (again.output_text, again.usage.total_tokens)  # type: ignore[union-attr]
    third = client.responses.create(input="So?", previous_response_id=second.id, **ASKED)
    assert third.usage.input_tokens > second.usage.input_tokens  # type: ignore[union-attr]


def test_a_response_is_kept_until_it_is_deleted(client: openai.OpenAI, http: httpx.Client) -> None:
    made = client.responses.create(input="Hello", **ASKED)
    assert client.responses.retrieve(made.id) == made
    assert http.get(f"/v1/responses/{made.id}?stream=true").status_code == 400
    assert http.delete(f"/v1/responses/{made.id}").json()["deleted"] is True
    for lost in (made.id, client.responses.create(input="Hello", store=False, **ASKED).id):
        with pytest.raises(openai.NotFoundError, match="no response is kept under"):
            client.responses.retrieve(lost)
        with pytest.raises(openai.BadRequestError, match="send the whole conversation") as caught:
            client.responses.create(input="And?", previous_response_id=lost, **ASKED)
        assert caught.value.param == "previous_response_id"


def test_what_is_kept_is_bounded_and_what_is_gone_is_said() -> None:
    stored = Stored(max_responses=3, max_bytes=1000)
    for i in range(4):
        stored.keep({"id": f"r{i}"}, [])
    with pytest.raises(HttpError, match="no response is kept under 'r0'") as caught:
        stored.get("r0")
    assert caught.value.status == 404
    assert "latest 3" in caught.value.expected
    assert stored.get("r1").response == {"id": "r1"}, "and it is the newest now"
    stored.keep({"id": "long"}, [{"content": "x" * 950}])
    assert (len(stored), stored.get("long").nbytes) == (1, stored.nbytes)
    stored.keep({"id": "too long"}, [{"content": "x" * 1000}])
    assert (len(stored), stored.nbytes) == (0, 0)


def test_effort_reaches_the_template(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """As in chat: the same prompt, to the token."""
    said = "{% for m in messages %}{{ m.content }}{% endfor %} effort={{ reasoning_effort|default('none') }}"
    with BackgroundServer(load(templated(checkpoint("llama"), tmp_path, said), name=NAME)) as url:
        counts = []
        for effort in ("low", "medium"):
            asked = {**ASKED, "input": "x", "reasoning": {"effort": effort}}
            ours = httpx.post(f"{url}/v1/responses", json=asked, timeout=60).json()
            body = {"model": NAME, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
            chat = {**body, "reasoning_effort": effort}
            theirs = httpx.post(f"{url}/v1/chat/completions", json=chat, timeout=60).json()
            assert ours["usage"]["input_tokens"] == theirs["usage"]["prompt_tokens"]
            assert ours["reasoning"]["effort"] == effort
            counts.append(ours["usage"]["input_tokens"])
        assert counts[0] != counts[1]
