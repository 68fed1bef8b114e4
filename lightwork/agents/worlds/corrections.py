"""Corrections: sentences of a small language with agreement, and the mistakes that can be told from it.

A noun has a gender and a number, and what points at it agrees in both; a verb agrees in number with the noun
before it. So whatever a mistake took away can be inferred from what it left:

    wrong: those kamul bodes lozin  a vetal   gibut of of  te    dunas
    right: these kamul bodes lozin the vetal  gibut of    those  dunas .

A mistake drops a word, puts one in (a filler, or a word twice), or puts another form of it in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from lightwork.agents.worlds.plan_world import SYLLABLES
from lightwork.errors import RangeError

POINTERS = (("this", "these"), ("that", "those"))
"""By gender: of one thing, and of several."""
FILLERS = ("er", "um", "well")
LINKS = ("and", "but", "while")
OF, STOP = "of", "."
LEAST = range(28, 36)
"""Words after which a sentence ends with its clause."""


def _stems(number: int, ending: str) -> tuple[str, ...]:
    """Words of two syllables; no stem has two endings."""
    pairs = [a + b for a in SYLLABLES for b in SYLLABLES]
    Random(f"stems {ending}").shuffle(pairs)
    return tuple(stem + ending for stem in pairs[:number])


NOUNS, VERBS, ADJECTIVES = _stems(64, "t"), _stems(32, "n"), _stems(32, "l")
WORDS = tuple(
    f" {word}"
    for word in (
        *(form for pair in POINTERS for form in pair),
        *(noun + ending for noun in NOUNS for ending in ("", "s")),
        *(verb + ending for verb in VERBS for ending in ("", "s")),
        *(adjective + ending for adjective in ADJECTIVES for ending in ("", "e")),
        *(*FILLERS, *LINKS, OF, STOP),
    )
)
"""Every word of the language, right or wrong, as it stands in a text."""


@dataclass(frozen=True, slots=True)
class Word:
    """right: as it has to be. wrong: forms it may be mistaken for. implied: whether the rest tells of it."""

    right: str
    wrong: tuple[str, ...] = ()
    implied: bool = False


@dataclass(frozen=True, slots=True)
class Correction:
    """source: with mistakes. target: without. edits: how many mistakes were made."""

    source: str
    target: str
    edits: int


@dataclass(slots=True, kw_only=True)
class Corrections:
    """An endless, seeded source. rate: the share of words with a mistake."""

    rng: Random
    rate: float = 0.06

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate <= 1.0:
            raise RangeError(f"mistakes in {self.rate} of all words", expected="0 to 1", fix="rate=0.06")

    def __iter__(self) -> Iterator[Correction]:
        while True:
            yield self.sample()

    def sample(self) -> Correction:
        words = self._sentence()
        said: list[str] = []
        edits = 0
        for word in words:
            wrong = self.rng.random() < self.rate
            said += self._mistaken(word) if wrong else [word.right]
            edits += wrong
        source, target = ("".join(f" {w}" for w in text) for text in (said, [w.right for w in words]))
        return Correction(source, target, edits)

    def _mistaken(self, word: Word) -> list[str]:
        kinds = ["insert", *["replace"] * bool(word.wrong), *["drop"] * word.implied]
        kind = self.rng.choice(kinds)
        if kind == "drop":
            return []
        if kind == "replace":
            return [self.rng.choice(word.wrong)]
        return [word.right, self.rng.choice((word.right, *FILLERS))]

    def _sentence(self) -> list[Word]:
        words: list[Word] = []
        least = self.rng.choice(LEAST)
        while len(words) < least:
            words += [Word(self.rng.choice(LINKS))] * bool(words)
            words += self._clause()
        return [*words, Word(STOP, implied=True)]

    def _clause(self) -> list[Word]:
        """Who does what, to whom, perhaps of whom."""
        several = self.rng.random() < 0.5
        verb = self.rng.choice(VERBS)
        forms = (verb + "s", verb)
        words = [*self._phrase(several), Word(forms[several], (forms[not several],)), *self._phrase()]
        if self.rng.random() < 0.5:
            words += [Word(OF, implied=True), *self._phrase()]
        return words

    def _phrase(self, several: bool | None = None) -> list[Word]:
        several = self.rng.random() < 0.5 if several is None else several
        at = self.rng.randrange(len(NOUNS))
        pointers = [form for pair in POINTERS for form in pair]
        right = POINTERS[at % 2][several]
        words = [Word(right, tuple(p for p in pointers if p != right), implied=True)]
        if self.rng.random() < 0.5:
            adjective = self.rng.choice(ADJECTIVES)
            words.append(Word(adjective, (adjective + "e",)))
        return [*words, Word(NOUNS[at] + "s" * several)]
