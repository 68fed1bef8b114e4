"""Plans as models write them, read line by line while they are written.

    Thought: both are needed first                the thought of the next call
    1. search("height of Oslo")                   a call; arguments are Python literals
    2. compare($1, "the height is ${1}", unit="m")    results of earlier calls, as values or in a text
    3. height kamu e3                             PlanWorld's form: a word for the thought first
    4. join()                                     the end

A line is read the moment its newline comes. What breaks the rules comes back as `Bad`, with the reason, for
the model to read; the lines after it are read on.

Source: the plan format of LLMCompiler (Kim et al., 2023), section 3.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lightwork.agents.graph import Slot, Task, Template
from lightwork.errors import RangeError

SLOT = re.compile(r"\$(?:\{([0-9]{1,6}(?:\.\w+)*)\}|([0-9]{1,6}(?:\.[A-Za-z_]\w*|\.[0-9]+)*))")
_CALL = re.compile(r"([0-9]{1,6})\s*[.)]\s*([A-Za-z_][\w.-]*)\s*\((.*)\)\s*", re.DOTALL)
_WORDS = re.compile(r"([0-9]{1,6})\. ([A-Za-z_]\w*) ([A-Za-z_]\w*)((?: \S+)+)")
_JOIN = re.compile(r"(?:[0-9]{1,6}\s*[.)]\s*)?join\s*\(\s*\)\s*")
_THOUGHT = re.compile(r"Thought\s*:\s*(.*)")
_HOLE = "lightwork_slot_{}"
MOST_CHARS = 1 << 16
SHOWN = 80


@dataclass(frozen=True, slots=True)
class Bad:
    """A line that is no call. why: what was wrong, for the model."""

    line: str
    why: str


@dataclass(frozen=True, slots=True)
class Join:
    """The plan is complete."""


Said = Task | Bad | Join


@dataclass(slots=True)
class PlanParser:
    """Reads a plan from pieces of text. most: calls; another one ends it, as Bad. first: the
    least id of a call. known: ids of calls made before, whose results may be used.

    done: the end was read; what comes after it is not looked at. Raises RangeError if most is not positive.
    """

    most: int = 256
    first: int = 1
    known: frozenset[int] = frozenset()
    done: bool = field(default=False, init=False)
    _line: str = field(default="", init=False)
    _thought: str = field(default="", init=False)
    _last: int = field(default=0, init=False)
    _ids: set[int] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        if self.most < 1:
            raise RangeError(f"a plan of at most {self.most} calls", expected="at least 1")
        self._last = self.first - 1

    def push(self, piece: str) -> Iterator[Said]:
        """What the lines say that end in this piece."""
        lines = (self._line + piece).split("\n")
        self._line = lines.pop()
        for line in lines:
            yield from self._read(line)
        if len(self._line) > MOST_CHARS:
            line, self._line = self._line, ""
            yield from self._read(line)

    def end(self) -> Iterator[Said]:
        """What the last line says, which no newline ended; and that the end is missing, if it is."""
        line, self._line = self._line, ""
        yield from self._read(line)
        if not self.done:
            self.done = True
            yield Bad("", "the plan ends without join()")

    def _read(self, line: str) -> Iterator[Said]:
        line = line.strip()
        if self.done or not line:
            return
        if _JOIN.fullmatch(line):
            self.done = True
            yield Join()
        elif thought := _THOUGHT.fullmatch(line):
            self._thought = thought[1]
        else:
            yield from self._call(line)

    def _call(self, line: str) -> Iterator[Said]:
        task = read_call(line, self._thought) if len(line) <= MOST_CHARS else None
        self._thought = ""
        why = "" if task is not None else "it is neither `ID. TOOL(ARGUMENTS)` nor join()"
        if task is not None:
            why = self._broken(task)
        if len(self._ids) >= self.most:
            self.done = True
            yield Bad(line[:SHOWN], f"the plan has more than {self.most} calls; the rest is not looked at")
            return
        if why or task is None:
            yield Bad(line[:SHOWN], why)
            return
        self._last = task.id
        self._ids.add(task.id)
        yield task

    def _broken(self, task: Task) -> str:
        """The rule that a call breaks, or ""."""
        if task.id in self._ids or task.id in self.known:
            return f"there is a call {task.id} already"
        if task.id <= self._last:
            return f"ids must rise: {task.id} comes after {self._last}"
        for dep in task.deps:
            if dep not in self._ids and dep not in self.known:
                what = "itself" if dep == task.id else f"${dep}, which is not before it"
                return f"call {task.id} needs {what}"
        return ""


def read_call(line: str, thought: str = "") -> Task | None:
    """A line as a call, None if it is none. Arguments that are no literals are one text, as they stand."""
    if match := _CALL.fullmatch(line):
        args, named = _arguments(match[3])
        return Task(int(match[1]), match[2], args, named, thought)
    if match := _WORDS.fullmatch(line):
        return Task(int(match[1]), match[3], [_word(word) for word in match[4].split()], None, match[2])
    return None


def _word(word: str) -> Any:
    match = SLOT.fullmatch(word)
    if match:
        return _slot(match)
    return int(word) if re.fullmatch(r"-?[0-9]{1,18}", word) else word


def _arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    text = text.strip()
    if not text:
        return [], {}
    slots: list[Slot] = []

    def hole(match: re.Match[str]) -> str:
        slots.append(_slot(match))
        return _HOLE.format(len(slots) - 1)

    code = "".join(part if quoted else SLOT.sub(hole, part) for quoted, part in _quotes(text))
    try:
        tree = ast.parse(f"f({code})", mode="eval").body
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "f":
            named = {word.arg: _literal(word.value, slots) for word in tree.keywords if word.arg is not None}
            if len(named) == len(tree.keywords):
                return [_literal(arg, slots) for arg in tree.args], named
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        pass
    return [_text(text)], {}


def _quotes(text: str) -> Iterator[tuple[bool, str]]:
    """Pieces of a text, each with whether it is a quoted string."""
    at = 0
    for match in re.finditer(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", text, re.DOTALL):
        yield False, text[at : match.start()]
        yield True, match[0]
        at = match.end()
    yield False, text[at:]


def _literal(node: ast.expr, slots: list[Slot]) -> Any:
    """Raises ValueError for what is no literal."""
    if isinstance(node, ast.Constant):
        return _text(node.value) if isinstance(node.value, str) else node.value
    if isinstance(node, ast.Name) and node.id.startswith(_HOLE[:-2]):
        return slots[int(node.id[len(_HOLE) - 2 :])]
    if isinstance(node, ast.List):
        return [_literal(part, slots) for part in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_literal(part, slots) for part in node.elts)
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        return {
            k.value: _literal(v, slots)
            for k, v in zip(node.keys, node.values, strict=True)
            if isinstance(k, ast.Constant)
        }
    return ast.literal_eval(node)


def _text(text: str) -> str | Slot | Template:
    """A text with results in it: a Slot if it is nothing else, itself if there are none."""
    parts: list[str | Slot] = []
    at = 0
    for match in SLOT.finditer(text):
        parts += [text[at : match.start()], _slot(match)]
        at = match.end()
    if not parts:
        return text
    kept = tuple(part for part in [*parts, text[at:]] if part != "")
    return kept[0] if len(kept) == 1 and isinstance(kept[0], Slot) else Template(kept)


def _slot(match: re.Match[str]) -> Slot:
    id, *path = (match[1] or match[2]).split(".")
    return Slot(int(id), tuple(path))
