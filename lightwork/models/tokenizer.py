"""Text to tokens and back, chat templates, and text while tokens arrive."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import tokenizers
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lightwork.errors import CheckpointError, UsageError

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_PENDING = 16
"""Tokens after which bytes that still make no character are shown as they are: no character is that long."""


def _bytes_by_letter() -> dict[str, int]:
    """How byte-level vocabularies write bytes: printable ones as they are in Latin-1, the others from U+0100
    on (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(rest)}


_BYTE_OF = _bytes_by_letter()


class Tokenizer:
    """Tokenizer and chat template of a model folder or a GGUF file. Raises CheckpointError if unreadable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tokenizer, self._config, self._generation = _of_file(path) if path.is_file() else _of(path)

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token, by its text as the vocabulary writes it."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    @property
    def json(self) -> str:
        """All of it, as tokenizer.json says it."""
        return str(self._tokenizer.to_str())

    @cached_property
    def special(self) -> dict[str, str]:
        """Special tokens by role: bos_token, eos_token, ..."""
        roles = ("bos_token", "eos_token", "unk_token", "pad_token")
        found = {role: self._config.get(role) for role in roles}
        return {role: v["content"] if isinstance(v, dict) else v for role, v in found.items() if v}

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a text: of generation_config.json, else the tokenizer's own."""
        ids = self._generation.get("eos_token_id")
        if ids is None:
            ids = self._tokenizer.token_to_id(self.special.get("eos_token", ""))
        return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of a text. add_special: with the tokens the model was trained to see around it."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special).ids)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special))

    def token_text(self, token: int) -> str:
        """The token as it stands in a text, with the space before it, special tokens included."""
        return self.decode([*self._before, token])[len(self.decode(self._before)) :]

    @cached_property
    def _before(self) -> list[int]:
        """A token to stand behind: some decoders drop the first space of a text, of which nothing is a part
        that is behind another."""
        return self.encode("a")[-1:]

    def token_bytes(self, token: int) -> bytes:
        """The token's own bytes, where they make no whole character either."""
        text = self.token_text(token)
        if REPLACEMENT not in text:
            return text.encode()
        name = self._tokenizer.id_to_token(token) or ""
        if match := re.fullmatch(r"<0x([0-9A-F]{2})>", name):
            return bytes.fromhex(match[1])
        known = [_BYTE_OF.get(char) for char in name]
        return text.encode() if None in known else bytes(byte for byte in known if byte is not None)

    def stream(self, *, behind: bool = False) -> Detokenizer:
        """behind: the text goes on from another, so its first space is shown."""
        return Detokenizer(self, self._before if behind else ())

    # -- chat

    @cached_property
    def chat_template(self) -> str | None:
        """The source of the template that conversations are written with."""
        source = self._config.get("chat_template")
        if isinstance(source, list):
            source = next((t["template"] for t in source if t.get("name") == "default"), None)
        if source is None and (self._path / "chat_template.jinja").is_file():
            source = (self._path / "chat_template.jinja").read_text(encoding="utf-8")
        return source or None

    @cached_property
    def _template(self) -> jinja2.Template | None:
        source = self.chat_template
        if source is None:
            return None
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        try:
            return environment.from_string(source)
        except jinja2.TemplateError as error:
            raise CheckpointError(
                f"the chat template of {self._path} cannot be read: {error}",
                expected="a Jinja template",
                fix="copy it again",
            ) from error

    def chat_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        now: datetime | None = None,
        **variables: Any,
    ) -> str:
        """A conversation as the model was trained to see it. Raises UsageError if the template refuses it.

        now: the date for templates that write one; without it they write their own default.
        """
        if now is not None:
            variables["strftime_now"] = now.strftime
        if self._template is None:
            raise UsageError(
                "this model has no chat template",
                expected="a model trained for chat",
                fix="use /v1/completions",
            )
        try:
            return self._template.render(
                messages=list(messages),
                tools=list(tools) if tools else None,
                add_generation_prompt=add_generation_prompt,
                **{**self.special, **variables},
            )
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, KeyError) as error:
            raise UsageError(f"the chat template refuses these messages: {error}") from error

    def chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> list[int]:
        """Token ids of `chat_text`."""
        return self.encode(self.chat_text(messages, **settings))


class Detokenizer:
    """Text of tokens as they come. The pieces joined are exactly `decode` of all the tokens, behind those of
    the context."""

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._context = [*context]
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """The text that became certain with this token: never half a character."""
        self._pending.append(token)
        text = self._new_text()
        if text.endswith(REPLACEMENT):
            return self._give_up() if len(self._pending) >= _MAX_PENDING else ""
        if text:
            self._context, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        """What is left when no more tokens come."""
        text = self._new_text() if self._pending else ""
        self._context, self._pending = [], []
        return text

    def _give_up(self) -> str:
        """Show bytes that make no character, but keep the last 3 tokens: one may still be completed."""
        whole, before = self._tokenizer.decode(self._context + self._pending), len(self._context)
        start = len(self._tokenizer.decode(self._context))
        for cut in range(len(self._pending) - 3, 0, -1):
            text = self._tokenizer.decode((self._context + self._pending)[: before + cut])
            if whole.startswith(text):
                self._context, self._pending = self._pending[:cut], self._pending[cut:]
                return text[start:]
        return ""

    def _new_text(self) -> str:
        """Decoded behind the tokens before it: decoders treat the first token of a text differently."""
        decode = self._tokenizer.decode
        return decode(self._context + self._pending)[len(decode(self._context)) :]


Parts = tuple[tokenizers.Tokenizer, dict[str, Any], dict[str, Any]]
"""The tokenizer, tokenizer_config.json, generation_config.json."""


def _of(folder: Path) -> Parts:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json",
            expected="a fast tokenizer",
            fix="save it with transformers",
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for a damaged file
        raise CheckpointError(
            f"{path} cannot be read: {error}", expected="a tokenizer", fix="copy it again"
        ) from error
    return tokenizer, _read(folder / "tokenizer_config.json"), _read(folder / "generation_config.json")


def _of_file(path: Path) -> Parts:
    from lightwork.models.gguf.container import Container
    from lightwork.models.gguf.vocabulary import read_vocabulary

    return read_vocabulary(Container(path))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not JSON: {error}", expected="a JSON object", fix="copy it again"
        ) from error
    return value if isinstance(value, dict) else {}


class _Generation(Extension):
    """`{% generation %}` marks an assistant's words for training; here it only shows what it encloses."""

    tags = {"generation"}  # noqa: RUF012 - the library's own form

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, without HTML escapes; the signature is the one that templates are written for."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
