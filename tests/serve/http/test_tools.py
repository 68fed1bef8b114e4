"""Tools over real HTTP with the official clients: a random model is held to calls by the grammar."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from lightwork.decode.constraints import grammars
from lightwork.models import resolve
from lightwork.models.tokenizer import Tokenizer
from lightwork.serve.http.main import BackgroundServer, load
from lightwork.serve.http.schemas import ChatBody
from lightwork.serve.http.tool_grammar import chat_constraint
from lightwork.serve.plan import Plan

pytest.importorskip("llguidance")

NAME = "tiny"
ASK = [{"role": "user", "content": "What is the weather?"}]
CITY = {"type": "string", "enum": ["Oslo", "Rome"]}
WEATHER = {
    "type": "object",
    "properties": {"city": CITY, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


def tool(name: str, parameters: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    function = {"name": name, **({"parameters": parameters} if parameters is not None else {}), **more}
    return {"type": "function", "function": function}


TOOLS = [tool("weather", WEATHER), tool("stop")]


@pytest.fixture(scope="module")
def url(checkpoint: Callable[..., Path]) -> Iterator[str]:
    """A longer context than the session's server has: a schema is hundreds of bytes, each a token here."""
    with BackgroundServer(load(Plan(model=str(checkpoint("llama")), max_len=512), name=NAME)) as address:
        yield address


def chat(client: openai.OpenAI, **settings: Any) -> Any:
    asked = {"model": NAME, "messages": ASK, "max_tokens": 150, "temperature": 1.0, "tools": TOOLS}
    return client.chat.completions.create(**{**asked, **settings})


def check(name: str, arguments: str) -> None:
    given = json.loads(arguments)
    if name == "weather":
        assert given.keys() == {"city", "days"}
        assert given["city"] in CITY["enum"]
        assert 1 <= given["days"] <= 7
    else:
        assert (name, given) == ("stop", {})


@pytest.mark.parametrize("seed", range(4))
def test_required_makes_calls_that_follow_their_schemas(client: openai.OpenAI, seed: int) -> None:
    choice = chat(client, tool_choice="required", parallel_tool_calls=False, seed=seed).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls
    assert call.type == "function"
    check(call.function.name, call.function.arguments)


def test_several_calls_are_each_whole(client: openai.OpenAI) -> None:
    many = [chat(client, tool_choice="required", seed=seed).choices[0] for seed in range(3)]
    for choice in many:
        calls = choice.message.tool_calls
        whole = calls if choice.finish_reason == "tool_calls" else calls[:-1]
        for call in whole:
            check(call.function.name, call.function.arguments)
        assert len({call.id for call in calls}) == len(calls)
    assert max(len(choice.message.tool_calls) for choice in many) > 1


@pytest.mark.parametrize("name", ["weather", "stop"])
def test_a_named_function_is_the_one_that_is_called(client: openai.OpenAI, name: str) -> None:
    named = {"type": "function", "function": {"name": name}}
    [call] = chat(client, tool_choice=named).choices[0].message.tool_calls
    assert call.function.name == name
    check(name, call.function.arguments)


def test_a_streamed_call_is_the_whole_one_in_pieces(client: openai.OpenAI) -> None:
    settings = {"tool_choice": "required", "seed": 3, "parallel_tool_calls": False}
    [whole] = chat(client, **settings).choices[0].message.tool_calls
    name, arguments, pieces, reason = "", "", 0, None
    for event in chat(client, stream=True, **settings):
        [choice] = event.choices
        reason = choice.finish_reason or reason
        for new in choice.delta.tool_calls or ():
            assert new.index == 0
            name += new.function.name or ""
            arguments += new.function.arguments or ""
            pieces += 1
        assert not choice.delta.content
    assert (name, arguments) == (whole.function.name, whole.function.arguments)
    assert pieces > 1
    assert reason == "tool_calls"


def test_what_a_call_led_to_is_told_and_answered(client: openai.OpenAI) -> None:
    first = chat(client, tool_choice="required", parallel_tool_calls=False, seed=0).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "rain"}
    messages = [*ASK, first.model_dump(exclude_none=True), result]
    final = chat(client, messages=messages, tool_choice="none", max_tokens=8).choices[0]
    assert final.message.tool_calls is None
    assert final.message.content


def test_without_demands_a_reply_is_free_text(client: openai.OpenAI) -> None:
    for choice in (None, "auto"):
        settings = {} if choice is None else {"tool_choice": choice}
        reply = chat(client, max_tokens=12, **settings).choices[0]
        assert reply.message.content
        assert reply.finish_reason in ("stop", "length")


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.mark.parametrize(
    ("settings", "fits", "breaks"),
    [
        (
            {"tools": [tool("weather", WEATHER, strict=True)]},
            ["Hello", "a < b", "Let me see. " + call("weather", '{"city": "Oslo", "days": 2}') + " So:"],
            ["Hm " + call("weather", '{"city": "Bonn", "days": 2}'), call("other", "{}"), "<tool_call>x"],
        ),
        (
            {"parallel_tool_calls": False},
            ["Hello", "Hm " + call("stop", "{}"), call("weather", '{"any": 1}')],
            [call("stop", "{}") * 2, call("stop", "{}") + "more"],
        ),
        (
            {"tool_choice": "required"},
            [call("stop", "{}") + "\n" + call("weather", '{"city": "Rome", "days": 7}')],
            ["Hello", call("stop", '{"a": 1}'), call("weather", "{}")],
        ),
    ],
    ids=["strict", "one call", "required"],
)
def test_the_grammar_takes_what_was_asked_for_and_nothing_else(
    settings: dict[str, Any], fits: list[str], breaks: list[str]
) -> None:
    tokenizer = Tokenizer(resolve("tiny:llama"))
    body = ChatBody.model_validate({"model": NAME, "messages": ASK, "tools": TOOLS, **settings})
    constraint = chat_constraint(body)
    assert constraint is not None
    compiled = grammars(tokenizer, tokenizer.vocab_size)
    for text, whole in [*((text, True) for text in fits), *((text, False) for text in breaks)]:
        tokens = tokenizer.encode(text)
        assert (compiled.matcher(constraint).num_accepted([], tokens) == len(tokens)) == whole, text


def test_json_or_calls(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}
    kinds = set()
    for seed in range(8):
        message = chat(client, response_format=form, seed=seed, parallel_tool_calls=False).choices[0].message
        kinds.add("call" if message.tool_calls else "text")
        if message.tool_calls:
            check(message.tool_calls[0].function.name, message.tool_calls[0].function.arguments)
        else:
            assert json.loads(message.content) in ("yes", "no")
    assert kinds == {"call", "text"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [tool("f"), tool("f")]}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0.type"),
        ({"tools": [tool("no spaces")]}, "tools.0.function.name"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": "required", "tools": [tool("f", {"type": "string"})]}, "tools"),
        ({"tool_choice": "required", "tools": [tool("f", {"properties": {"a": {"type": "x"}}})]}, "tools"),
        ({"structured_outputs": {"regex": "a+"}}, "tools"),
        ({"structured_outputs": {"json": "{"}, "tool_choice": "required"}, "tools"),
        ({"messages": [*ASK, {"role": "assistant", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}
        ]}]}, "messages"),
    ],
    ids=lambda v: str(v)[:40],
)  # fmt: skip
def test_what_cannot_be_called_is_refused_before_anything_is_generated(
    http: httpx.Client, fields: dict[str, Any], param: str
) -> None:
    body = {"model": NAME, "messages": ASK, "tools": TOOLS, "max_tokens": 4, **fields}
    reply = http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


def test_responses_make_calls(client: openai.OpenAI) -> None:
    tools = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}]
    asked: dict[str, Any] = {
        "model": NAME, "input": "Weather?", "tools": tools, "tool_choice": "required", "seed": 1,
        "parallel_tool_calls": False, "max_output_tokens": 100,
    }  # fmt: skip
    settings = {"extra_body": {"seed": asked.pop("seed")}}
    whole = client.responses.create(**asked, **settings)
    [call] = whole.output
    assert call.type == "function_call"
    check(call.name, call.arguments)
    assert whole.status == "completed"
    events = [*client.responses.create(**asked, **settings, stream=True)]
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[2] == "output_item.added"
    assert kinds[-3:] == ["function_call_arguments.done", "output_item.done", "completed"]
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments


@pytest.fixture
def claude(url: str) -> Iterator[Any]:
    anthropic = pytest.importorskip("anthropic")
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def test_messages_use_tools(claude: Any) -> None:
    asked: dict[str, Any] = {
        "model": NAME,
        "max_tokens": 100,
        "messages": ASK,
        "tools": [{"name": "weather", "description": "How it is", "input_schema": WEATHER}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "extra_body": {"seed": 5},
    }
    message = claude.messages.create(**asked)
    [block] = message.content
    assert (block.type, message.stop_reason) == ("tool_use", "tool_use")
    check(block.name, json.dumps(block.input))
    with claude.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert final.content[0].input == block.input
    answered = [
        *ASK,
        {"role": "assistant", "content": [block.model_dump(exclude_none=True)]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": block.id, "content": "rain"}]},
    ]
    spoken = {"messages": answered, "tool_choice": {"type": "none"}, "max_tokens": 20}
    last = claude.messages.create(**{**asked, **spoken})
    assert {b.type for b in last.content} == {"text"}
