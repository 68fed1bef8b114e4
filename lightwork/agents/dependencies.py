"""Which steps of a trajectory need what others found out: by where their arguments come from, or by asking.

    needs = await Provenance().needs(trajectory)       # {1: {0}, 2: {0}, 3: {1, 2}, 4: {3}}
    needs = await Judge(model).needs(trajectory)       # a model says so, as an edge list

Numbers are those of `trajectories`: 0 is the question, 1 to n are calls, n + 1 is the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from lightwork.agents.chat_model import ChatModel, ChatRequest, Message
from lightwork.agents.trajectories import Trajectory
from lightwork.errors import UsageError

Needs = Mapping[int, frozenset[int]]
"""For each step and the answer, what it needs; the question where that is all."""

JUDGE = """Below are a question, the numbered tool calls that were made one after another to answer it, and
what each gave. Number 0 is the question, the last number is the answer. Say which need what others gave.
Reply with edges only, like 0->1,0->2,1->3,2->3,3->4: every number after 0 has an edge to it."""
_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
_TOKEN = re.compile(rf"{_NUMBER.pattern}(?![^\W_])|{_WORD.pattern}")
_EDGE = re.compile(r"(\d{1,6})\s*->\s*(\d{1,6})")


class DependencyOracle(Protocol):
    """Says what needs what."""

    async def needs(self, trajectory: Trajectory) -> Needs:
        """Raises UsageError if that cannot be told."""
        ...


class Leaf(NamedTuple):
    """A value somewhere in arguments or a result. key: what it is called there. words: normalised, a space
    around each.
    """

    key: str
    words: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """Exact: a step needs another if a value of its arguments comes from there: it is in what the other gave,
    and neither in the question nor in what an earlier step gave.

    Where several steps of earlier turns gave the same value, those count that call it by the argument's name,
    if any do; which of them it is, `_settle` says.
    """

    async def needs(self, trajectory: Trajectory) -> Needs:
        steps, end = trajectory.steps, len(trajectory.steps) + 1
        gave = {i: [*leaves(step.text if step.error else step.value)] for i, step in enumerate(steps, 1)}
        asked = normalised(trajectory.question)
        sought = {i: [*leaves(dict(step.call.arguments))] for i, step in enumerate(steps, 1)}
        sought[end] = [*leaves(trajectory.answer)]
        needs: dict[int, set[int]] = {i: set() for i in sought}
        open_: list[tuple[int, list[int]]] = []
        before = _before(trajectory)
        for i, wanted in sought.items():
            for leaf in wanted:
                for choice in _sources(leaf, asked, {u: gave[u] for u in before[i]}):
                    if len(choice) == 1:
                        needs[i].add(choice[0])
                    else:
                        open_.append((i, choice))
        _settle(needs, open_)
        return {i: frozenset(found or {0}) for i, found in needs.items()}


def _settle(needs: dict[int, set[int]], open_: list[tuple[int, list[int]]]) -> None:
    """Add who is needed where several gave a value, so that as many steps as possible are needed at all.

    A step that nothing needs so far goes first where it has the fewest chances, and takes the one that others
    have least use for. What is left over goes to a step that is needed there anyhow, else to the earliest.
    """
    certain = {i: frozenset(found) for i, found in needs.items()}
    unused = {u for _, choice in open_ for u in choice}.difference(*needs.values())
    while chances := {u: [one for one in open_ if u in one[1]] for u in sorted(unused)}:
        u = min(chances, key=lambda u: len(chances[u]))
        unused.discard(u)
        if chances[u]:
            one = min(
                chances[u], key=lambda one: (not certain[one[0]].isdisjoint(one[1]), len(unused & {*one[1]}))
            )
            needs[one[0]].add(u)
            open_.remove(one)
    for i, choice in open_:
        needs[i].add(min(choice, key=lambda u: (u not in certain[i], u)))


def _before(trajectory: Trajectory) -> dict[int, range]:
    """For each step and the answer, the steps of earlier turns."""
    found = {i: range(1, group[0]) for group in trajectory.groups for i in group}
    return found | {len(trajectory.steps) + 1: range(1, len(trajectory.steps) + 1)}


def _sources(leaf: Leaf, asked: str, gave: Mapping[int, list[Leaf]]) -> Iterator[list[int]]:
    """For each value in an argument that the question does not have: who gave it, those alike in rank.

    A value is the argument as a whole; if nobody gave that, each whole result and each number in it.
    """
    if leaf.words in asked:
        return
    given = [(u, other) for u, found in gave.items() for other in found]
    if whole := [(u, other.key == leaf.key) for u, other in given if leaf.words in other.words]:
        yield _best(whole)
        return
    parts = {other.words for _, other in given if other.words in leaf.words}
    parts |= {f" {word} " for word in leaf.words.split() if any(map(str.isdigit, word))}
    parts = {part for part in parts if part not in asked}
    for part in sorted(p for p in parts if not any(p != q and p in q for q in parts)):
        if found := [(u, other.key == leaf.key) for u, other in given if part in other.words]:
            yield _best(found)


def _best(found: list[tuple[int, bool]]) -> list[int]:
    named = [u for u, same in found if same]
    return [*dict.fromkeys(named or [u for u, _ in found])]


def leaves(value: Any, key: str = "") -> Iterator[Leaf]:
    """The values in nested data; true, false and nothing tell no origin. A text may be JSON."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from leaves(inner, str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from leaves(inner, key)
    elif value is not None and not isinstance(value, bool) and (words := normalised(value)).strip():
        yield Leaf(key, words)


def normalised(value: Any) -> str:
    """Words in lower case, numbers in one form ("1,000.0" is "1000"), a space around each."""
    return " ".join(["", *(_token(m[0]) for m in _TOKEN.finditer(str(value))), ""])


def _token(text: str) -> str:
    if not _NUMBER.fullmatch(text):
        return text.casefold()
    whole, _, rest = text.replace(",", "").partition(".")
    rest = rest.rstrip("0")
    return f"{whole}.{rest}" if rest else whole


@dataclass(frozen=True, slots=True)
class Judge:
    """A model says what needs what, as the paper's does."""

    model: ChatModel
    max_tokens: int = 1024

    async def needs(self, trajectory: Trajectory) -> Needs:
        messages = Message("system", JUDGE), Message("user", _told(trajectory))
        reply = await self.model.stream(ChatRequest(messages, max_tokens=self.max_tokens)).reply()
        return read_edges(reply.text)


def _told(trajectory: Trajectory) -> str:
    lines = [f"0. {trajectory.question}"]
    for i, step in enumerate(trajectory.steps, 1):
        lines.append(f"{i}. {step.call.name}({json.dumps(dict(step.call.arguments))}) gave {step.text}")
    return "\n".join([*lines, f"{len(lines)}. the answer: {trajectory.answer}"])


def read_edges(text: str) -> Needs:
    """An edge list, `0->1,0->2,1->3`. Raises UsageError if the text has anything else in it."""
    needs: dict[int, set[int]] = {}
    for edge in filter(None, map(str.strip, re.split(r"[,\n]", text))):
        match = _EDGE.fullmatch(edge)
        if match is None:
            raise UsageError(f"{edge[:80]!r} is no edge", expected="0->1,0->2,1->3")
        needs.setdefault(int(match[2]), set()).add(int(match[1]))
    return {i: frozenset(found) for i, found in needs.items()}


def write_edges(needs: Needs) -> str:
    """As `read_edges` reads it."""
    return ",".join(f"{u}->{v}" for v in sorted(needs) for u in sorted(needs[v]))
