"""/v1/messages with Anthropic's own client: whole, streamed, and errors that it understands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

anthropic = pytest.importorskip("anthropic")

NAME = "tiny"
ASKED: dict[str, Any] = {
    "model": NAME,
    "max_tokens": 12,
    "messages": [{"role": "user", "content": "Hello"}],
}
GREEDY: dict[str, Any] = {"extra_body": {"temperature": 0}}
"""Its client has no argument for that any more."""


@pytest.fixture
def claude(url: str) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def test_a_message_says_what_a_chat_says(claude: Any, http: httpx.Client) -> None:
    message = claude.messages.create(system="Be brief", **ASKED, **GREEDY)
    messages = [{"role": "system", "content": "Be brief"}, *ASKED["messages"]]
    chat = http.post("/v1/chat/completions", json={**ASKED, "messages": messages, "temperature": 0}).json()
    [block] = message.content
    assert block.text == chat["choices"][0]["message"]["content"]
    assert message.stop_reason == "max_tokens"
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == chat["usage"]["prompt_tokens"]
    assert usage.output_tokens == 12
    counted = claude.messages.count_tokens(model=NAME, messages=ASKED["messages"], system="Be brief")
    assert counted.input_tokens == chat["usage"]["prompt_tokens"]


def test_a_streamed_message_is_the_whole_one_in_events(claude: Any) -> None:
    whole = claude.messages.create(**ASKED, **GREEDY)
    events = [*claude.messages.create(stream=True, **ASKED, **GREEDY)]
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    with claude.messages.stream(**ASKED, **GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 12)


def test_a_stop_sequence_is_named(claude: Any) -> None:
    long = {**ASKED, **GREEDY, "max_tokens": 40}
    text = claude.messages.create(**long).content[0].text
    at = next(i for i in range(3, len(text) - 3) if text[i : i + 2].isprintable())
    stop = text[at : at + 2]
    message = claude.messages.create(**long, stop_sequences=["never in it", stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert message.content[0].text == text[: text.index(stop)]


def test_uses_of_tools_and_their_results_reach_the_template(http: httpx.Client) -> None:
    """The same prompt as the chat's, to the token."""
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "Wea"}, {"type": "text", "text": "ther?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "rain"}]},
                {"type": "text", "text": "And?"},
            ],
        },
    ]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "user", "content": "And?"},
    ]
    ours = http.post("/v1/messages/count_tokens", json={"model": NAME, "messages": turns}).json()
    theirs = http.post("/tokenize", json={"model": NAME, "messages": messages}).json()
    assert ours["input_tokens"] == theirs["count"]


def test_a_reply_can_be_held_to_a_schema(claude: Any) -> None:
    pytest.importorskip("llguidance")
    config = {"format": {"type": "json_schema", "schema": {"enum": ["yes", "no"]}}, "effort": "low"}
    message = claude.messages.create(**{**ASKED, "max_tokens": 20}, output_config=config)
    assert json.loads(message.content[0].text) in ("yes", "no")
    assert message.stop_reason == "end_turn"


def test_errors_are_those_that_the_client_knows(claude: Any, http: httpx.Client) -> None:
    with pytest.raises(anthropic.NotFoundError, match="no model is called"):
        claude.messages.create(**{**ASKED, "model": "other"})
    prefilled = [*ASKED["messages"], {"role": "assistant", "content": "The"}]
    for fields, word in (
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"messages": prefilled}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"max_tokens": 0}, "max_tokens"),
    ):
        reply = http.post("/v1/messages", json={**ASKED, **fields})
        assert reply.status_code == 400, reply.text
        assert reply.json()["type"] == "error"
        assert word in reply.json()["error"]["message"]


def test_every_field_of_a_message_is_known_and_the_unknown_are_named(http: httpx.Client) -> None:
    from anthropic.types.message_create_params import MessageCreateParamsBase

    from lightwork.serve.http.adapters.messages import UNSUPPORTED, MessagesBody

    known = {*MessagesBody.model_fields, *UNSUPPORTED, *MessagesBody.hints}
    assert set(MessageCreateParamsBase.__annotations__) <= known
    reply = http.post("/v1/messages", json={**ASKED, "zork": 1, "thinking": {"type": "disabled"}})
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-lightwork-ignored"] == "zork"
