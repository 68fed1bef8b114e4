"""/v1/messages with Anthropic's own client: whole, streamed, and errors that it understands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.serve.http.adapters.thinking import Thought, ThoughtParser
from lightwork.serve.http.main import BackgroundServer, load
from lightwork.serve.plan import Plan

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


THINKS = (
    "{% for m in messages %}{{ m.reasoning_content|default('') }}{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined and enable_thinking %}<think>{% else %}<think></think>{% endif %}"
)


def test_thoughts_are_blocks_of_their_own(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Where the template opens them, a random model never ends them."""
    shutil.copytree(checkpoint("llama"), tmp_path / "model")
    place = tmp_path / "model" / "tokenizer_config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "chat_template": THINKS}))
    plan = Plan(model=str(tmp_path / "model"), max_len=256)
    with BackgroundServer(load(plan, name=NAME)) as url, httpx.Client(base_url=url, timeout=60) as http:
        on = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "temperature": 0}
        reply = http.post("/v1/messages", json={**ASKED, **on})
        assert reply.headers["x-lightwork-ignored"] == "thinking.budget_tokens"
        [block] = reply.json()["content"]
        body = {"model": NAME, "messages": ASKED["messages"], "max_tokens": 12, "temperature": 0}
        body["chat_template_kwargs"] = {"enable_thinking": True}
        chat = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
        assert block == {"type": "thinking", "thinking": chat.strip(), "signature": ""}
        with (
            anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as claude,
            claude.messages.stream(**ASKED, extra_body=on) as stream,
        ):
            assert stream.get_final_message().content[0].thinking == block["thinking"]
        off = http.post("/v1/messages", json={**ASKED, "temperature": 0, "thinking": {"type": "disabled"}})
        assert [block["type"] for block in off.json()["content"]] == ["text"]
        turns = [*ASKED["messages"], {"role": "assistant", "content": [block]}, *ASKED["messages"]]
        counts = [
            http.post("/v1/messages/count_tokens", json={"model": NAME, "messages": m}).json()["input_tokens"]
            for m in (turns, [turns[0], {"role": "assistant", "content": "x"}, turns[0]])
        ]
        assert counts[0] > counts[1], "what was thought is told to the template"
        held = {"output_config": {"format": {"type": "json_schema", "schema": {"enum": ["yes"]}}}}
        assert http.post("/v1/messages", json={**ASKED, **on, **held}).status_code == 400


@given(cuts=st.sets(st.integers(0, 60)), opened=st.booleans(), case=st.sampled_from(range(5)))
def test_thoughts_and_answers_do_not_depend_on_how_they_come(cuts: set[int], opened: bool, case: int) -> None:
    written, thought, answer = [
        ("\n a <b> </thin\n\n</think>\n\nyes </think> it", "a <b> </thin", "yes </think> it"),
        ("a</think>b", "a", "b"),
        ("cut </thi", "cut </thi", ""),
        ("</think> only", "", "only"),
        ("both ends \n", "both ends", ""),
    ][case]
    text = written if opened else f"\n<think>{written}"
    parser = ThoughtParser(opened=opened)
    found: list[Thought | str] = []
    for start, end in pairwise([0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]):
        found += parser.push(text[start:end])
    found += parser.finish()
    assert "".join(part.text for part in found if isinstance(part, Thought)) == thought
    assert "".join(part for part in found if isinstance(part, str)) == answer


@pytest.mark.parametrize("text", ["no thought", " <thin", "<", "<thinking> is hard", "  ", ""])
def test_what_begins_without_a_thought_is_the_answer(text: str) -> None:
    parser = ThoughtParser(opened=False)
    found = [part for letter in text for part in parser.push(letter)] + parser.finish()
    assert not any(isinstance(part, Thought) for part in found)
    assert "".join(map(str, found)) == text


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
