"""What the verbs print: results on stdout, the rest on stderr, nothing decorative outside a terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from textwrap import fill
from types import TracebackType
from typing import Any, TextIO

from lightwork.shown import Table, cell


def is_terminal(stream: TextIO) -> bool:
    return stream.isatty()


def paint(text: str, code: str, stream: TextIO) -> str:
    """The text in a colour (an SGR code), unless the stream is no terminal or NO_COLOR is set."""
    return f"\x1b[{code}m{text}\x1b[0m" if is_terminal(stream) and not os.environ.get("NO_COLOR") else text


def show_error(kind: str, text: str) -> None:
    """Write an error in its three parts to stderr."""
    print(f"{paint(kind, '1;31', sys.stderr)}: {text}", file=sys.stderr)


def show_json(value: Any) -> None:
    """Write one JSON value to stdout; dataclasses become objects."""
    print(json.dumps(value, indent=1, ensure_ascii=False, default=_plain))


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table to stdout: drawn by rich on a terminal, else aligned text that is never cut."""
    if not is_terminal(sys.stdout):
        cells = [[cell(value) for value in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        for row in [list(columns), *cells]:
            print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
        return
    from rich.console import Console

    Console().print(Table(title="", columns=tuple(columns), rows=tuple(map(tuple, rows))))


def wrapped(text: str, label: str = "") -> str:
    """The text behind its label; on a terminal in lines that fit, below each other. Words are never cut."""
    if not is_terminal(sys.stdout):
        return label + text
    columns = os.get_terminal_size(sys.stdout.fileno()).columns or 80
    indent = " " * len(label)
    return fill(
        text,
        max(columns, 40),
        initial_indent=label,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


class StatusLine:
    """One line on stderr that is rewritten in place, and is nothing when stderr is not a terminal.

    with StatusLine() as status:
        status("running 3  waiting 1  412 tokens/s  KV 12%")
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.shown = is_terminal(self.stream)

    def __call__(self, text: str) -> None:
        if self.shown:
            width = os.get_terminal_size(self.stream.fileno()).columns or 80
            self.stream.write(f"\r\x1b[2K{text[: width - 1]}")
            self.stream.flush()

    def __enter__(self) -> StatusLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.shown:
            self.stream.write("\r\x1b[2K")
            self.stream.flush()


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)
