"""What a model is fine-tuned on: a file of JSON lines, in the forms that OpenAI's and TRL's trainers read.

{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}   answers are learnt
{"prompt": ..., "completion": ...}                                                        the completion is
{"text": ...}                                                                             everything is
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightwork.errors import SpecError
from lightwork.models.tokenizer import Tokenizer

MAX_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Example:
    """tokens, and whether each is to be predicted from those before it."""

    tokens: list[int]
    predicted: list[bool]


def read_examples(file: Path, tokenizer: Tokenizer, max_len: int) -> list[Example]:
    """The examples of a file, in order.

    max_len: tokens of one. Raises SpecError that names the line, for one that is longer too: nothing is cut.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise SpecError(
                f"{file} is larger than {MAX_BYTES} bytes", expected="a smaller file", fix="split it"
            )
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{file} cannot be read: {error}", expected="a file of JSON lines") from None
    examples = [_example(file, i, line, tokenizer) for i, line in enumerate(lines, 1) if line.strip()]
    if not examples:
        raise SpecError(f"{file} is empty", expected="a JSON object per line")
    for i, example in enumerate(examples, 1):
        if len(example.tokens) > max_len:
            raise SpecError(
                f"example {i} of {file} has {len(example.tokens)} tokens",
                expected=f"at most {max_len}, the model's context",
                fix="split it",
            )
    return examples


def _example(file: Path, number: int, line: str, tokenizer: Tokenizer) -> Example:
    def wrong(what: str) -> SpecError:
        return SpecError(
            f"line {number} of {file} {what}",
            expected='{"messages": [...]}, {"prompt": ..., "completion": ...} or {"text": ...}',
        )

    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise wrong("is not JSON") from None
    if not isinstance(record, dict):
        raise wrong("is not an object")
    tokens: list[int] = []
    predicted: list[bool] = []
    for text, learnt, special in _parts(record, tokenizer, wrong):
        ids = tokenizer.encode(text, add_special=special)
        tokens += ids
        predicted += [learnt] * len(ids)
    if "text" not in record:
        ends = sorted(tokenizer.eos_ids)[:1] if not record.get("messages") else []
        tokens += ends
        predicted += [True] * len(ends)
    if not any(predicted[1:]):
        raise wrong("holds nothing to learn")
    return Example(tokens, predicted)


def _parts(record: dict[str, Any], tokenizer: Tokenizer, wrong: Any) -> Iterator[tuple[str, bool, bool]]:
    """(text, whether it is learnt, whether the tokenizer may add its own tokens before it)."""
    if isinstance(record.get("messages"), list):
        yield from _messages(record["messages"], tokenizer, wrong)
    elif isinstance(record.get("prompt"), str) and isinstance(record.get("completion"), str):
        yield record["prompt"], False, True
        yield record["completion"], True, False
    elif isinstance(record.get("text"), str):
        yield record["text"], True, True
    else:
        raise wrong("has none of the known forms")


def _messages(messages: list[Any], tokenizer: Tokenizer, wrong: Any) -> Iterator[tuple[str, bool, bool]]:
    """What the model's template writes, cut where answers begin and end."""
    for message in messages:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(k), str) for k in ("role", "content")
        ):
            raise wrong("holds a message without role or content")
    written = ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = tokenizer.chat_text(messages[:i])
        after = tokenizer.chat_text(messages[: i + 1], add_generation_prompt=False)
        if not before.startswith(written) or not after.startswith(before):
            raise wrong("is written by the model's template in a way that answers cannot be told apart")
        yield before[len(written) :], False, False
        yield after[len(before) :], True, False
        written = after
