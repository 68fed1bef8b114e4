"""What a matcher allows is what the constraint says, a function of the output; errors let nothing through."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lightwork.decode import constraints
from lightwork.decode.constraints import Constraint, Grammars, Matcher, grammars
from lightwork.decode.proposers import ROOT, Draft
from lightwork.errors import ConstraintError
from lightwork.models import resolve
from lightwork.models.tokenizer import Tokenizer
from lightwork.testing import write_tokenizer

pytest.importorskip("llguidance")

PERSON = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """The built-in model's: 580 pieces of words."""
    return Tokenizer(resolve("tiny:llama"))


@pytest.fixture(scope="module")
def known(words: Tokenizer) -> Grammars:
    return grammars(words, words.vocab_size + 20)


def write(matcher: Matcher, tokenizer: Tokenizer, rng: random.Random, most: int = 60) -> str | None:
    """A text of allowed tokens; ended where that is allowed and it has become long. None if it had no end."""
    output: list[int] = []
    (end,) = tokenizer.eos_ids
    while len(output) < most:
        allowed = matcher.allowed(output)
        token = rng.choice(np.flatnonzero(allowed).tolist())
        if allowed[end] and len(output) > 12:
            token = end
        whole = matcher.end(output, [token])
        output.append(token)
        if whole is not None:
            assert whole == 1
            return tokenizer.decode([t for t in output if t != end])
    return None


ATOMS = st.one_of(
    st.sampled_from(["a", "/", r"\d", r"\w", r"[\s_]", r"[^\D]", "[a-c]", "[^a-z]", r"\.", ".", "é", " "]),
    st.text("ab:{", min_size=1, max_size=3).map(re.escape),
)
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda p: f"(?:{p[0]}|{p[1]})"),
        st.tuples(inner, st.sampled_from(["?", "{1,2}", "{3}", "*", "+"])).map(lambda p: f"(?:{p[0]}){p[1]}"),
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(pattern=PATTERNS, seed=st.integers(0, 1000))
def test_what_is_written_under_an_expression_matches_it(pattern: str, seed: int) -> None:
    tokenizer = Tokenizer(resolve("tiny:llama"))
    matcher = Grammars(tokenizer, tokenizer.vocab_size).matcher(Constraint(kind="regex", text=pattern))
    text = write(matcher, tokenizer, random.Random(seed))
    assume(text is not None)  # where anything may go on for ever, chance seldom ends it
    assert re.fullmatch(pattern, text, re.ASCII), text


@settings(max_examples=60, deadline=None)
@given(data=st.data(), pattern=PATTERNS)
def test_whatever_matches_an_expression_can_be_written(data: st.DataObject, pattern: str) -> None:
    """As the tokenizer writes it, and then ended; nothing beside it by less than a token is refused."""
    tokenizer = Tokenizer(resolve("tiny:llama"))
    text = data.draw(
        st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True).filter(lambda t: len(t) < 80)
    )
    matcher = Grammars(tokenizer, tokenizer.vocab_size).matcher(Constraint(kind="regex", text=pattern))
    tokens = tokenizer.encode(text)
    assert matcher.num_accepted([], tokens) == len(tokens)
    (end,) = tokenizer.eos_ids
    assert matcher.allowed(tokens)[end]


@pytest.mark.parametrize(
    "choices",
    [["yes", "no", "yes, but"], ["a|b", "(a", "\\d", "a\nb", '"', "é😀", "</s>"], ["", "x"]],
    ids=str,
)
def test_one_of_several_strings_is_written_as_it_is(
    words: Tokenizer, known: Grammars, choices: list[str]
) -> None:
    matcher = known.matcher(Constraint(kind="choice", text=json.dumps(choices)))
    written = {write(matcher, words, random.Random(seed)) for seed in range(60)}
    assert written == set(choices)


def test_a_grammar_of_either_notation(words: Tokenizer, known: Grammars) -> None:
    lark = 'start: "<" WORD ">"\nWORD: /[a-c]{2}/'
    gbnf = 'root ::= "<" [a-c] [a-c] ">"'
    for text in (lark, gbnf):
        matcher = known.matcher(Constraint(kind="lark", text=text))
        for seed in range(5):
            assert re.fullmatch("<[a-c]{2}>", write(matcher, words, random.Random(seed)))


def test_json_is_written_as_printers_write_it_and_not_with_more_space(
    words: Tokenizer, known: Grammars
) -> None:
    value = {"a": [1, {"b": None}], "c": "d", "e": {}}
    (end,) = words.eos_ids
    matcher = known.matcher(Constraint(kind="json_object"))
    for style in (
        {},
        {"separators": (",", ":")},
        {"indent": 2},
        {"indent": "\t"},
        {"separators": (" , ", " : ")},
    ):
        tokens = words.encode(json.dumps(value, **style))  # type: ignore[arg-type]
        assert matcher.num_accepted([], tokens) == len(tokens)
        assert np.flatnonzero(matcher.allowed(tokens)).tolist() == [end]
    line, space = words.encode("\n")[0], words.encode(" ")[0]
    output = [words.encode("{")[0], line]
    assert not matcher.allowed(output)[line]
    while matcher.allowed(output)[space]:
        output.append(space)
    assert len(output) == 26


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_matcher_is_a_function_of_the_output(seed: int) -> None:
    """However it came there: over drafts that were refused, from another text, or anew."""
    rng, tokenizer = random.Random(seed), Tokenizer(resolve("tiny:llama"))
    known = grammars(Tokenizer(resolve("tiny:llama")), tokenizer.vocab_size)
    kind = rng.choice(
        [Constraint(kind="json_schema", text=PERSON), Constraint(kind="regex", text="(ab|a)*c{2,9}")]
    )
    used = known.matcher(kind)
    outputs: list[list[int]] = [[]]
    for _ in range(30):
        output = rng.choice(outputs)
        allowed = used.allowed(output)
        anew = known.matcher(kind)
        assert (allowed == anew.allowed(output)).all()
        assert used.forced(output) == anew.forced(output)
        token = rng.choice(np.flatnonzero(allowed).tolist())
        end = used.end(output, [token])
        assert end == known.matcher(kind).end(output, [token])
        if end is None:
            outputs.append([*output, token])


def test_a_refused_token_is_told_of_and_changes_nothing(words: Tokenizer, known: Grammars) -> None:
    matcher = known.matcher(Constraint(kind="regex", text="ab+c"))
    a, b, z = (words.encode(letter)[0] for letter in "abz")
    before = matcher.allowed([a, b]).copy()
    with pytest.raises(ConstraintError, match="not allowed at 2"):
        matcher.allowed([a, b, z, z])
    assert matcher.num_accepted([a], [b, b, z, b]) == 2
    assert (matcher.allowed([a, b]) == before).all()


def test_the_end_is_where_nothing_can_follow(words: Tokenizer, known: Grammars) -> None:
    matcher = known.matcher(Constraint(kind="regex", text="ab?"))
    a, b = (words.encode(letter)[0] for letter in "ab")
    (end,) = words.eos_ids
    assert matcher.end([], [a]) is None
    assert matcher.end([], [a, b]) == 2
    assert matcher.end([a], [end, b]) == 1
    assert np.flatnonzero(matcher.allowed([a, b])).tolist() == [end]


def test_what_is_certain_is_told_as_the_tokenizer_writes_it(words: Tokenizer, known: Grammars) -> None:
    matcher = known.matcher(
        Constraint(kind="choice", text=json.dumps(["the same beginning: a", "the same beginning: b"]))
    )
    forced = matcher.forced([])
    assert "the same beginning: ".startswith(words.decode(forced))
    assert len(words.decode(forced)) > 10
    for i, token in enumerate(forced):
        assert np.flatnonzero(matcher.allowed(forced[:i])).tolist() == [token]


@pytest.mark.parametrize(
    ("kind", "text", "told"),
    [
        ("json_schema", '{"type": "strin"}', "strin"),
        ("json_schema", "{", "JSON schema"),
        ("json_schema", "[1]", "not a JSON object"),
        ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        (
            "json_schema",
            '{"x-guidance": {"lenient": true}, "type": "array", "uniqueItems": true}',
            "uniqueItems",
        ),
        ("json_schema", '{"enum": []}', "Unsatisfiable"),
        ("json_schema", '{"type": "string", "format": "no-such"}', "no-such"),
        ("json_schema", '{"type": "string", "pattern": "(?=a)b"}', "pattern|look"),
        ("json_schema", '{"type": "string", "minLength": 3, "maxLength": 2}', "minLength|[Uu]nsatisfiable"),
        ("json_schema", '{"$ref": "#/nowhere"}', "nowhere"),
        ("json_schema", "[" * 100_000, "JSON schema"),
        ("regex", "(a", "regex"),
        ("regex", r"(a)\1", "regex"),
        ("regex", "a(?=b)", "regex"),
        ("regex", "[^\\s\\S]", "regex"),
        ("regex", "\ud800", "regex"),
        ("choice", "[]", "list of strings"),
        ("choice", '"a"', "list of strings"),
        ("lark", 'start: "a" missing', "missing"),
        ("lark", "", "grammar"),
    ],
)
def test_what_cannot_be_enforced_is_refused_and_named(
    known: Grammars, kind: constraints.Kind, text: str, told: str
) -> None:
    with pytest.raises(ConstraintError, match=told) as refused:
        known.matcher(Constraint(kind=kind, text=text))
    assert len(str(refused.value)) < 1200


def test_constraints_are_compiled_once_and_not_kept_for_ever(
    words: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constraints, "KEPT", 3)
    own = Grammars(words, words.vocab_size)
    asked = [Constraint(kind="regex", text=f"a{{{i}}}") for i in range(1, 6)]
    compiled = [own._compile(asked[0])]
    monkeypatch.setattr(own, "_compile", lambda c: compiled.append(c) or compiled[0])
    for constraint in [*asked[:3], *asked[:3], *asked]:
        own.matcher(constraint)
    assert compiled[1:] == asked
    assert [constraint in own for constraint in asked] == [False, False, True, True, True]


def test_the_same_tokenizer_has_one_cache(words: Tokenizer) -> None:
    assert grammars(words, 600) is grammars(words, 600)
    assert grammars(words, 600) is not grammars(words, 601)


def test_tokens_that_the_tokenizer_does_not_have_are_never_allowed(words: Tokenizer, known: Grammars) -> None:
    allowed = known.matcher(Constraint(kind="json_object")).allowed(words.encode('{"'))
    assert allowed.shape == (words.vocab_size + 20,)
    assert allowed[:-20].sum() > 100
    assert not allowed[-20:].any()


def test_a_model_without_an_end_token_takes_no_constraint(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    endless = Tokenizer(tmp_path)
    with pytest.raises(ConstraintError, match="no token that ends a text"):
        Grammars(endless, 300).matcher(Constraint(kind="regex", text="a"))


def test_a_draft_without_some_nodes_is_a_draft() -> None:
    draft = Draft((1, 2, 3, 4, -1, 5), (ROOT, 0, 0, 2, 1, ROOT))
    assert draft.without({1}) == Draft((1, 3, 4, 5), (ROOT, 0, 1, ROOT))
    assert draft.without({0}) == Draft((5,), (ROOT,))
    assert draft.without(()) == draft
