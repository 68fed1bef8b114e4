"""Tool calls are found in a reply's text however it is cut, and nothing that was said is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightwork.models import resolve
from lightwork.models.tokenizer import Tokenizer
from lightwork.serve.calls import BEGIN, END, CallParser, Piece
from lightwork.serve.http.choices import ChatChoices
from lightwork.serve.http.replies import Choice
from lightwork.serve.http.schemas import ChatBody
from lightwork.serve.service import Delta

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def read(text: str, cuts: int = 1) -> tuple[str, list[tuple[str, str]]]:
    """Text and calls of a reply that comes in pieces of so many characters."""
    parser = CallParser()
    pieces: list[Piece] = []
    for at in range(0, len(text), cuts):
        pieces += parser.push(text[at : at + cuts])
    pieces += parser.finish()
    calls: list[tuple[str, str]] = []
    for piece in pieces:
        if not isinstance(piece, str):
            if piece.id:
                calls.append((piece.name, ""))
            name, arguments = calls[piece.number]
            calls[piece.number] = (name, arguments + piece.arguments)
    assert parser.num_calls == len(calls)
    return "".join(piece for piece in pieces if isinstance(piece, str)), calls


def call(name: str, arguments: object) -> str:
    return f"{BEGIN}\n{json.dumps({'name': name, 'arguments': arguments})}\n{END}"


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("hello ", "hello ", []),
        (call("f", {}), "", [("f", "{}")]),
        ("Let me see.\n" + call("f", {"a": END}), "Let me see.", [("f", json.dumps({"a": END}))]),
        (call("f", {"a": [{}]}) + "\n" + call("g", {}), "", [("f", '{"a": [{}]}'), ("g", "{}")]),
        (BEGIN + '{"arguments": {"x": 1}, "name": "f"}' + END, "", [("f", '{"x": 1}')]),
        (BEGIN + '{"name": "f", "parameters": {"x": 1}}' + END, "", [("f", '{"x": 1}')]),
        (BEGIN + '{"name": "f", "arguments": "{}"}' + END, "", [("f", "{}")]),
        (BEGIN + '{"name": "f"}' + END + " done", "done", [("f", "{}")]),
    ],
    ids=["text", "call", "text first", "two", "other order", "parameters", "as a string", "no arguments"],
)
def test_calls_are_found(text: str, said: str, calls: list[tuple[str, str]]) -> None:
    assert {str(read(text, cuts)) for cuts in (1, 2, 5, 1000)} == {str((said, calls))}


@pytest.mark.parametrize(
    "text",
    [f"{BEGIN}rubbish{END} x", f"{BEGIN}[1]{END}", BEGIN + '{"name":', "a <tool_c", f"{BEGIN}{END}"],
)
def test_what_only_looks_like_a_call_is_text(text: str) -> None:
    assert {str(read(text, cuts)) for cuts in (1, 3, 1000)} == {str((text, []))}


def test_a_call_that_is_cut_short_keeps_what_came() -> None:
    assert read(BEGIN + '{"name": "f", "arguments": {"a": "b') == ("", [("f", '{"a": "b')])
    for rest in ("", "}", "}\n", "}\n</tool"):
        assert read(BEGIN + '{"name": "f", "arguments": {}' + rest) == ("", [("f", "{}")])
    broken = read(BEGIN + '{"name": "f", "arguments": {"a": 1 <b> }}' + END)
    assert broken == ("<b> }}", [("f", '{"a": 1 ')])


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(
    made=st.lists(
        st.tuples(st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.dictionaries(st.text(), values))
    ),
    cuts=st.integers(1, 40),
)
def test_any_arguments_arrive_as_they_were_written(made: list[tuple[str, Any]], cuts: int) -> None:
    said, calls = read("\n".join(call(name, arguments) for name, arguments in made), cuts)
    assert said == ""
    assert [(name, json.loads(arguments)) for name, arguments in calls] == made


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet='<tool_call>/{"name:} '), cuts=st.integers(1, 9))
def test_how_a_text_is_cut_does_not_matter(text: str, cuts: int) -> None:
    assert read(text, cuts) == read(text, 1000)


def test_a_streamed_reply_tells_calls_by_index_and_a_whole_one_in_order() -> None:
    tokenizer = Tokenizer(resolve("tiny:llama"))
    body = ChatBody(model="m", messages=[{"role": "user", "content": "x"}], tools=TOOLS)  # type: ignore[list-item]
    text = "So:\n" + call("f", {"a": 1}) + call("f", {})
    shape = ChatChoices(body, tokenizer)
    streamed: list[dict[str, Any]] = []
    for at in range(0, len(text), 7):
        streamed.append(shape.piece(Delta(index=0, text=text[at : at + 7]), 0) or {"delta": {}})
    last = shape.piece(Delta(index=0, reason="stop"), 0)
    assert last is not None
    assert last["finish_reason"] == "tool_calls"
    whole = ChatChoices(body, tokenizer).whole(Choice(0, text, reason="stop"))
    assert whole["finish_reason"] == "tool_calls"
    assert "".join(piece["delta"].get("content", "") for piece in streamed) == whole["message"]["content"]
    news = [new for piece in streamed for new in piece["delta"].get("tool_calls", ())]
    assert [new["index"] for new in news if "id" in new] == [0, 1]
    for i, made in enumerate(whole["message"]["tool_calls"]):
        arguments = "".join(new["function"]["arguments"] for new in news if new["index"] == i)
        assert arguments == made["function"]["arguments"]
        assert made.keys() == {"id", "type", "function"}
    without = ChatBody(model="m", messages=body.messages, tools=body.tools, tool_choice="none")
    assert ChatChoices(without, tokenizer).whole(Choice(0, text, reason="stop"))["message"]["content"] == text
