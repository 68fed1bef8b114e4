"""PlanWorld: from a nested question and a catalogue of unknown tools to a plan of calls.

The catalogue describes each tool by one word and gives it a name re-drawn for every episode, so names are
looked up in the context, never known. The plan is that of LLMCompiler (Kim et al., 2023): numbered calls,
`$id` for the result of an earlier one, a closing join(). Each line quotes the description before the name, in
the place of LLMCompiler's Thought, which makes one two-hop look-up into two of one hop. Calls are ordered by
depth, so all that can start at once comes first; equal sub-expressions are called once.

    tools:                        question: difference of ( height of e3 ) and ( height of parent of e3 )
    - height kamu
    - parent lozi                 1. height kamu e3
    - difference bipu             2. parent lozi e3
                                  3. height kamu $2
                                  4. difference bipu $1 $3
                                  5. join()
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from lightwork.agents.worlds import Episode, Split, Verdict
from lightwork.errors import LightworkError, RangeError, UsageError

# fmt: off
ATTRIBUTES = (
    "height", "weight", "age", "price", "speed", "depth", "width", "score", "rank", "mass", "charge", "heat",
    "distance", "area", "volume", "length", "count", "balance", "energy", "power", "wealth", "risk", "noise",
    "strength",
)
RELATIONS = ("parent", "owner", "neighbour", "leader", "rival", "sibling", "teacher", "partner")
OPERATIONS = ("sum", "difference", "product", "maximum", "minimum", "gap")
# fmt: on
SYLLABLES = tuple(c + v for c in "bdfgklmnprstvz" for v in "aeiou")
ENTITIES = tuple(f"e{i}" for i in range(60))
MAX_LEVEL = 6
RELATED = 0.3
HELD_OUT = 64  # of 256 hash values: a quarter of all names
LINE = re.compile(r"([1-9][0-9]{0,4})\. (?:(join\(\))|([a-z]+) ([a-z]+)((?: \$?[a-z0-9]+)+))")


@dataclass(frozen=True, slots=True)
class Call:
    """A question as a tree: a description word, and entities or further calls as its arguments."""

    word: str
    args: tuple[Call | str, ...]

    @property
    def depth(self) -> int:
        return 1 + max(a.depth if isinstance(a, Call) else 0 for a in self.args)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is true of every entity, by a seed: attributes are 1 to 99, relations are entities."""

    seed: int

    def call(self, word: str, args: Sequence[int | str]) -> int | str:
        """Raises UsageError if the arguments are not what the word takes."""
        if word in OPERATIONS:
            if len(args) != 2 or not all(isinstance(a, int) for a in args):
                raise UsageError(f"{word} cannot take {list(args)}", expected="two numbers")
            return _operate(word, int(args[0]), int(args[1]))
        if len(args) != 1 or args[0] not in ENTITIES:
            raise UsageError(f"{word} cannot take {list(args)}", expected="one entity, e0 to e59")
        digest = hashlib.blake2b(f"{self.seed} {word} {args[0]}".encode(), digest_size=4).digest()
        number = int.from_bytes(digest, "big")
        return ENTITIES[number % len(ENTITIES)] if word in RELATIONS else 1 + number % 99


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanWorld:
    """Questions of depth 1 to 6; the built-in models were trained on 1 to 3.

    split: held-out episodes only have tool names that never occur in training. min_tools, max_tools:
    catalogue sizes. shared: this share of the questions deeper than 1 is drawn until two of its calls are
    equal, which a plan calls once. related: how probable it is that the sides of an operation are made to
    have a call, or an argument, in common.
    """

    split: Split = "train"
    min_tools: int = 8
    max_tools: int = 16
    shared: float = 0.0
    related: float = RELATED

    def sample(self, rng: Random, level: int) -> Episode:
        """One question about a fresh catalogue. Raises RangeError if level is not in 1..6."""
        return self.dialogue(rng, [level])[0]

    def dialogue(self, rng: Random, levels: Sequence[int]) -> list[Episode]:
        """Several questions about one catalogue, which only the first prompt lists. Raises RangeError."""
        names = self.catalogue(rng)
        episodes: list[Episode] = []
        for level in levels:
            if not 1 <= level <= MAX_LEVEL:
                raise RangeError(
                    f"level {level} is unknown", expected=f"1 to {MAX_LEVEL}", fix="level 1, 2 or 3"
                )
            question = self._question(rng, names, level)
            listed = [*names.items()] if not episodes else []
            asked = prompt(listed, english(question))
            episodes.append(episode(asked, names, question, Facts(rng.getrandbits(32))))
        return episodes

    def _question(self, rng: Random, names: Mapping[str, str], level: int) -> Call:
        question = draw(rng, names, level, self.related)
        if self.shared and level > 1 and rng.random() < self.shared:
            while not has_repeats(question):
                question = draw(rng, names, level, self.related)
        return question

    def catalogue(self, rng: Random) -> dict[str, str]:
        """Description to name, shuffled. No two names begin alike."""
        count = rng.randint(self.min_tools, self.max_tools)
        num_relations, num_operations = rng.randint(1, 3), rng.randint(1, 3)
        words = rng.sample(RELATIONS, num_relations) + rng.sample(OPERATIONS, num_operations)
        words += rng.sample(ATTRIBUTES, count - len(words))
        rng.shuffle(words)
        firsts = rng.sample(SYLLABLES, count)
        return {
            word: first + rng.choice(endings(first, self.split))
            for word, first in zip(words, firsts, strict=True)
        }


@cache
def endings(first: str, split: Split) -> tuple[str, ...]:
    """The second syllables that make a name of this split."""
    return tuple(s for s in SYLLABLES if is_held_out(first + s) == (split == "heldout"))


def is_held_out(name: str) -> bool:
    """Whether a tool name is kept out of training, by its hash alone."""
    return hashlib.sha256(name.encode()).digest()[0] < HELD_OUT


def draw(rng: Random, names: Mapping[str, str], level: int, related: float = RELATED) -> Call:
    """A random numeric question of exactly this depth."""
    attribute = rng.choice([w for w in names if w in ATTRIBUTES])
    if level == 1 or rng.random() < 0.35:
        return Call(attribute, (_draw_entity(rng, names, level - 1),))
    operation = rng.choice([w for w in names if w in OPERATIONS])
    deep = draw(rng, names, level - 1, related)
    other = draw(rng, names, rng.randint(1, level - 1), related)
    if rng.random() < related:
        other = _share(rng, names, deep)
    args = (deep, other) if rng.random() < 0.5 else (other, deep)
    return Call(operation, args)


def _draw_entity(rng: Random, names: Mapping[str, str], level: int) -> Call | str:
    if level == 0:
        return rng.choice(ENTITIES)
    return Call(rng.choice([w for w in names if w in RELATIONS]), (_draw_entity(rng, names, level - 1),))


def _share(rng: Random, names: Mapping[str, str], call: Call) -> Call:
    """A number that has a sub-expression in common with this one."""
    inner = rng.choice(call.args)
    if isinstance(inner, Call) and inner.word not in RELATIONS:
        return inner
    return Call(rng.choice([w for w in names if w in ATTRIBUTES]), (inner,))


def english(call: Call | str) -> str:
    """The question in controlled English."""
    if isinstance(call, str):
        return call
    if len(call.args) == 1:
        return f"{call.word} of {english(call.args[0])}"
    return f"{call.word} of ( {english(call.args[0])} ) and ( {english(call.args[1])} )"


def prompt(tools: Iterable[tuple[str, str]], question: str) -> str:
    """What a user says. tools: (description, name) of each; none where they are known already."""
    listed = [f"- {word} {name}" for word, name in tools]
    return "\n".join([*(["tools:", *listed] if listed else []), f"question: {question}"])


def plan(call: Call, names: Mapping[str, str]) -> str:
    """The gold plan: shallow calls first, left to right, each distinct call once."""
    ordered = sorted(dict.fromkeys(_post_order(call)), key=lambda c: c.depth)
    ids = {c: i for i, c in enumerate(ordered, 1)}
    lines = []
    for c in ordered:
        args = " ".join(f"${ids[a]}" if isinstance(a, Call) else a for a in c.args)
        lines.append(f"{ids[c]}. {c.word} {names[c.word]} {args}")
    return "\n".join([*lines, f"{len(ordered) + 1}. join()"])


def has_repeats(call: Call) -> bool:
    """Whether two of its calls are equal."""
    calls = [*_post_order(call)]
    return len(set(calls)) < len(calls)


def _post_order(call: Call) -> Iterator[Call]:
    for a in call.args:
        if isinstance(a, Call):
            yield from _post_order(a)
    yield call


def execute(text: str, names: Mapping[str, str], facts: Facts) -> int | str:
    """Carry out a plan and return the result of its last call.

    The names decide what is called; the quoted words are only thoughts. Raises UsageError for a plan that
    breaks the rules: unknown tool, forward reference, ids that do not rise, wrong arguments, no closing
    join().
    """
    tools = {name: word for word, name in names.items()}
    results: dict[str, int | str] = {}
    last = 0
    lines = text.split("\n")
    for i, line in enumerate(lines):
        match = LINE.fullmatch(line)
        if match is None or int(match[1]) <= last or (match[2] is not None) != (i == len(lines) - 1):
            raise UsageError(
                f"line {i + 1} of the plan is {line[:80]!r}",
                expected="ID. WORD TOOL ARGS, ids rising, join() last",
            )
        last = int(match[1])
        if match[2]:
            break
        if match[4] not in tools:
            raise UsageError(f"there is no tool {match[4]}", expected=", ".join(tools))
        results[f"${last}"] = facts.call(tools[match[4]], [_value(a, results) for a in match[5].split()])
    if not results:
        raise UsageError("the plan calls nothing", expected="at least one call before join()")
    return list(results.values())[-1]


def _value(arg: str, results: Mapping[str, int | str]) -> int | str:
    if not arg.startswith("$"):
        return arg
    if arg not in results:
        raise UsageError(f"{arg} has no result yet", expected="the id of an earlier call")
    return results[arg]


def _operate(word: str, a: int, b: int) -> int:
    results = {"sum": a + b, "difference": a - b, "product": a * b}
    results |= {"maximum": max(a, b), "minimum": min(a, b), "gap": abs(a - b)}
    return results[word]


def episode(prompt: str, names: Mapping[str, str], question: Call, facts: Facts) -> Episode:
    """names: of tools, by description."""
    gold = plan(question, names)

    def check(text: str) -> Verdict:
        text = text.strip()
        if text == gold:
            return Verdict(exact=True, answered=True)
        try:
            answer, right = execute(text, names, facts), execute(gold, names, facts)
        except LightworkError as error:
            return Verdict(exact=False, answered=False, why=str(error))
        why = "another plan" if answer == right else f"the answer is {right}, not {answer}"
        return Verdict(exact=False, answered=answer == right, why=why)

    words = {name: word for word, name in names.items()}
    return Episode(
        prompt=prompt,
        question=english(question),
        tools=words,
        gold=gold,
        check=check,
        call=lambda name, args: facts.call(words[name], args),
    )
