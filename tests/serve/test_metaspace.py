"""Constraints with tokenizers that write spaces as ▁ and fall back on bytes, as Llama 2 and Gemma do."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lightwork.decode.constraints import Constraint, Grammars, Matcher, grammars
from lightwork.decode.proposers.forced import Forced
from lightwork.decode.proposers.ngram import Ngram
from lightwork.decode.sampling import Pick, Sampling
from lightwork.models.tokenizer import Tokenizer
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.opening import open_one
from lightwork.serve.plan import Plan
from lightwork.serve.sequence import Request
from lightwork.serve.simulate import run_load
from lightwork.serve.text import TextOutput

pytest.importorskip("llguidance")

TEXT = ['{"name": "anna", "age": 12}', "the cat and the dog said yes or no", "a b c é ü", "1, 2, 34, 567"] * 3
SPACES = ["llama2", "mistral", "gemma"]


def write_metaspace(folder: Path, style: str) -> Tokenizer:
    """A tokenizer trained on a few words, with a token for each byte. style: what is done with a text's first
    space."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    rest = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if style == "mistral":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        spaces = normalizers.Replace(" ", "▁")
        first = [normalizers.Prepend("▁")] if style == "llama2" else []
        made.normalizer = normalizers.Sequence([*first, spaces])
    strips = [] if style == "gemma" else [decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence([*rest, *strips])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=480, special_tokens=special))
    told = json.loads(made.to_str())
    told["added_tokens"] = [each for each in told["added_tokens"] if each["id"] < 3]
    made = tokenizers.Tokenizer.from_str(json.dumps(told))
    assert made.token_to_id("<0x0A>") == 13
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tokenizer]:
    folder = tmp_path_factory.mktemp("metaspace")
    known = {style: write_metaspace(folder / style, style) for style in SPACES}
    return known.__getitem__


def shown(tokenizer: Tokenizer, tokens: list[int]) -> str:
    """As a reply shows it."""
    output = TextOutput(tokenizer, (), tokenizer.eos_ids)
    return "".join(output.push([Pick(token)])[0] for token in tokens) + output.flush()


def write(matcher: Matcher, tokenizer: Tokenizer, rng: random.Random) -> str | None:
    """The text of allowed tokens, chosen at random, until it ends; None if it does not soon."""
    output: list[int] = []
    (end,) = tokenizer.eos_ids
    for _ in range(80):
        allowed = matcher.allowed(output)
        token = end if allowed[end] else rng.choice(np.flatnonzero(allowed).tolist())
        output.append(token)
        if token == end:
            return shown(tokenizer, output)
        if matcher.end(output[:-1], [token]) is not None:
            return shown(tokenizer, output)
    return None


PATTERNS = [
    r"[a-z]{2,5}( [a-z]{1,4}){2}",
    r"(yes|no), \d{1,3}",
    r" [ab]{2}",
    r"[é→😀]{2} x?",
    r"\n\t[a-c] +b",
]


@pytest.mark.parametrize("style", SPACES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_expressions_hold_for_the_text_that_is_shown(
    made: Callable[[str], Tokenizer], style: str, pattern: str
) -> None:
    tokenizer = made(style)
    matcher = Grammars(tokenizer, tokenizer.vocab_size).matcher(Constraint(kind="regex", text=pattern))
    texts = [write(matcher, tokenizer, random.Random(seed)) for seed in range(20)]
    assert all(text is not None and re.fullmatch(pattern, text, re.ASCII) for text in texts), texts
    assert len({*texts}) > 1


@settings(max_examples=40, deadline=None)
@given(style=st.sampled_from(SPACES), seed=st.integers(0, 10_000))
def test_json_of_a_schema_is_that_schema_s(made: Callable[[str], Tokenizer], style: str, seed: int) -> None:
    tokenizer = made(style)
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"enum": [1, "é", None]}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    constraint = Constraint(kind="json_schema", text=json.dumps(schema))
    text = write(
        grammars(tokenizer, tokenizer.vocab_size).matcher(constraint), tokenizer, random.Random(seed)
    )
    if text is not None:  # a string of white space may go on for long
        value = json.loads(text)
        assert [*value] == ["name", "age"]
        assert len(value["name"]) <= 8
        assert value["age"] in (1, "é", None)


@settings(max_examples=60, deadline=None)
@given(style=st.sampled_from(SPACES), text=st.text("ab cé→😀\n\t", min_size=1, max_size=20))
def test_whatever_text_there_is_can_be_written(
    made: Callable[[str], Tokenizer], style: str, text: str
) -> None:
    """As the tokenizer encodes it behind another text, which is what is shown of it again."""
    tokenizer = made(style)
    before = tokenizer.encode("a")
    whole = tokenizer.encode(f"a{text}")
    assume(whole[: len(before)] == before)
    tokens = whole[len(before) :]
    assert shown(tokenizer, tokens) == text
    matcher = Grammars(tokenizer, tokenizer.vocab_size).matcher(
        Constraint(kind="regex", text=re.escape(text).replace("\\\n", "\\n").replace("\\\t", "\\t"))
    )
    assert matcher.num_accepted([], tokens) == len(tokens)
    assert matcher.end([], tokens) == len(tokens)


@pytest.mark.parametrize("style", SPACES)
def test_tokens_are_told_with_their_spaces(made: Callable[[str], Tokenizer], style: str) -> None:
    """Texts of single tokens, as log-probabilities name them, joined are the text."""
    tokenizer = made(style)
    said = "".join(map(tokenizer.token_text, tokenizer.encode("a the cat")))
    assert said == ("a the cat" if style == "gemma" else " a the cat")


@pytest.mark.parametrize("style", SPACES)
def test_drafts_change_nothing(style: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Texts hold, and are the same with what is copied, forced, and without."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("llama", vocab_size=480, bos_token_id=1, eos_token_id=2), folder)
    tokenizer = write_metaspace(folder, style)
    kinds = [Constraint(kind="regex", text=pattern) for pattern in PATTERNS]
    kinds.append(
        Constraint(
            kind="json_schema",
            text='{"type": "array", "items": {"enum": ["a b", 12]}, "minItems": 2, "maxItems": 3}',
        )
    )
    load = [
        Request(
            prompt=tuple(tokenizer.encode("the cat and the dog")),
            max_tokens=60,
            sampling=Sampling(temperature=1.0, seed=seed),
            stop_ids=tokenizer.eos_ids,
            constraint=constraint,
        )
        for seed, constraint in enumerate(kinds)
    ]
    said = {}
    for use in ((), (Ngram(k=4),), (Forced(),)):
        plan = Plan(model=str(folder), max_len=128, threads=1, use=use)
        engine = open_one(plan, Kernel(WallClock()), predict=lambda step: 1.0)[0]
        seqs = run_load(engine, [0.0] * len(load), load)
        engine.close()
        said[use] = [seq.tokens[seq.prompt_len :] for seq in seqs]
        if use == (Forced(),):
            assert sum(seq.drafted for seq in seqs) > 0
    assert len({*map(repr, said.values())}) == 1
    for constraint, tokens in zip(kinds, said[()], strict=True):
        text = shown(tokenizer, tokens)
        if constraint.kind == "regex":
            assert re.fullmatch(constraint.text, text, re.ASCII), text
        else:
            assert 2 <= len(json.loads(text)) <= 3
