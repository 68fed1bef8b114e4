"""Text to tokens and back, while they arrive, and chat templates as transformers renders them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.errors import CheckpointError, UsageError
from lightwork.models.tokenizer import Tokenizer
from lightwork.testing import write_tokenizer

TEMPLATE = """{%- if tools %}
  {%- for t in tools %}{{ t | tojson(indent=2) }}{% endfor %}
{%- endif %}
{% for m in messages %}
    {%- if m.role == 'stop' %}{% break %}{% endif %}
    {%- if m.role == 'poet' %}{{ raise_exception('no poets') }}{% endif %}
    {%- if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}
    {%- else %}{{ bos_token + m.content | trim }}{{ m | tojson(sort_keys=true) }}{% endif %}
{% endfor %}
{{ mood if mood is defined else 'calm' }}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
TALK = [{"role": "user", "content": " <é> & 'x' "}, {"role": "assistant", "content": "漢 {{ 1 }}"}]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "é<>", "parameters": {}}}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    config |= {"chat_template": TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


@given(ids=st.lists(st.integers(0, 261), max_size=60))
def test_streamed_text_is_the_decoded_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    stream = tokenizer.stream()
    assert "".join([*map(stream.push, ids), stream.flush()]) == tokenizer.decode(ids)


@given(text=st.text())
def test_streams_never_show_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    stream, ids = tokenizer.stream(), tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    shown = ""
    for token in ids:
        shown += stream.push(token)
        assert text.startswith(shown)
    assert shown + stream.flush() == text


def test_a_long_run_of_broken_bytes_still_ends_in_a_whole_character(tokenizer: Tokenizer) -> None:
    (byte,) = tokenizer.encode("é")[1:]
    ids = [*[byte] * 40, *tokenizer.encode("👩")]
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert any(pieces[:40])
    assert "".join(pieces) == tokenizer.decode(ids)


@pytest.mark.peer
@pytest.mark.parametrize(
    "settings", [{}, {"tools": TOOLS}, {"add_generation_prompt": True, "mood": "bright"}]
)
def test_chat_equals_transformers(folder: Path, tokenizer: Tokenizer, settings: dict[str, object]) -> None:
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = peer.apply_chat_template(TALK, tokenize=False, **settings)
    ours = tokenizer.chat_text(TALK, **({"add_generation_prompt": False} | settings))
    assert ours == theirs
    assert tokenizer.encode(theirs) == peer.encode(theirs, add_special_tokens=False)


def test_a_template_can_refuse(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="no poets"):
        tokenizer.chat([{"role": "poet", "content": ""}])


def test_the_date_is_the_callers(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    template = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}none{% endif %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert Tokenizer(tmp_path).chat_text([], now=datetime(2024, 7, 26)) == "26 Jul 2024"
    assert Tokenizer(tmp_path).chat_text([]) == "none"


def test_no_template_and_no_tokenizer_are_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        Tokenizer(tmp_path)
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UsageError, match="no chat template"):
        Tokenizer(tmp_path).chat([{"role": "user", "content": "x"}])


def test_end_tokens(checkpoint: Callable[..., Path]) -> None:
    assert Tokenizer(checkpoint("llama")).eos_ids == {257}
