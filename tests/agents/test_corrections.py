"""Targets obey the language's rules, sources differ from them by as many mistakes as they say."""

from __future__ import annotations

from itertools import islice, pairwise
from random import Random

import pytest

from lightwork.agents.worlds.corrections import (
    ADJECTIVES,
    FILLERS,
    LINKS,
    NOUNS,
    POINTERS,
    VERBS,
    WORDS,
    Corrections,
)
from lightwork.errors import RangeError
from lightwork.train.vocabulary import build_tokenizer

KNOWN = {noun + ending: (i % 2, bool(ending)) for i, noun in enumerate(NOUNS) for ending in ("", "s")}
"""Gender and number of every noun."""


def of(rate: float, num: int = 60, seed: int = 0) -> list[tuple[list[str], list[str], int]]:
    made = islice(Corrections(rng=Random(seed), rate=rate), num)
    return [(one.source.split(), one.target.split(), one.edits) for one in made]


def test_what_points_and_what_acts_agree_with_their_nouns() -> None:
    for _, target, _ in of(0.1):
        assert target[-1] == "."
        assert not {*FILLERS} & {*target}
        for before, word in pairwise(target):
            if before in KNOWN and word.rstrip("s") in VERBS:
                assert word.endswith("s") != KNOWN[before][1]
        for i, word in enumerate(target):
            gender = next((g for g, pair in enumerate(POINTERS) if word in pair), None)
            if gender is not None:
                noun = target[i + 1 + (target[i + 1] in ADJECTIVES)]
                assert KNOWN[noun] == (gender, word == POINTERS[gender][1])
        assert all(word in KNOWN for word, behind in pairwise(target) if behind in (*LINKS, "of", "."))


def test_mistakes_are_as_many_as_told_and_none_without_a_rate() -> None:
    assert all(source == target and not edits for source, target, edits in of(0.0))
    made = of(0.1)
    assert all((source != target) == (edits > 0) for source, target, edits in made)
    assert all(abs(len(source) - len(target)) <= edits for source, target, edits in made)
    words = sum(len(target) for _, target, _ in made)
    assert 0.07 * words < sum(edits for *_, edits in made) < 0.13 * words
    assert of(0.1) == made != of(0.1, seed=1)


def test_every_word_is_one_token() -> None:
    tokenizer = build_tokenizer([*WORDS], [])
    for one in islice(Corrections(rng=Random(0), rate=0.3), 20):
        for text in (one.source, one.target):
            tokens = tokenizer.encode(text).ids
            assert len(tokens) == len(text.split())
            assert tokenizer.decode(tokens) == text


@pytest.mark.parametrize("rate", [-0.1, 1.5])
def test_an_impossible_rate_is_refused(rate: float) -> None:
    with pytest.raises(RangeError, match="mistakes"):
        Corrections(rng=Random(0), rate=rate)
