"""Prompts of twelve sorts, to train and try a router on: what is to be done, with what.

No word decides: three things are done with four kinds of objects, in several ways of saying so, and an
expert is for one thing done with one kind.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

ACTIONS = {
    "sort": (
        "Put {} in order",
        "Please sort {}",
        "Arrange {} from first to last",
        "I need {} sorted",
        "Order {}",
    ),
    "count": (
        "How many are there in {}?",
        "Please count {}",
        "Tell me the size of {}",
        "Count up {}",
        "Tally {}",
    ),
    "change": (
        "Rewrite {}",
        "Please change {}",
        "Turn {} into the other form",
        "Convert {}",
        "I want {} changed",
    ),
}
OBJECTS = {
    "numbers": (
        "these numbers: {}",
        "the figures {}",
        "this row of integers: {}",
        "the values {}",
        "{}, all numbers,",
    ),
    "words": ("these words: {}", "the words {}", "this line of text: {}", "the terms {}", "{}, all words,"),
    "dates": ("these dates: {}", "the days {}", "this calendar: {}", "the appointments {}", "{}, all dates,"),
    "foods": (
        "these foods: {}",
        "the recipe {}",
        "this shopping list: {}",
        "the ingredients {}",
        "{}, all foods,",
    ),
}
WORDS = ("stone", "river", "green", "paper", "cloud", "engine", "window", "letter", "garden", "silver")
FOODS = ("flour", "butter", "milk", "rice", "beans", "apples", "onions", "salt", "bread", "cheese")
MONTHS = ("May", "June", "July", "August", "March", "April")
UNKNOWN = (
    "What is the capital of France?",
    "def main(): return [x for x in sys.argv[1:]]",
    "Why does the moon always show us the same side?",
    "Es war einmal ein König, der hatte drei Töchter.",
    "Translate 'good morning' to Japanese.",
    "Write a haiku on autumn rain.",
    "Who painted the ceiling over there?",
    "My knee hurts when I run uphill, what could that be?",
    "SELECT name FROM users WHERE age > 30;",
    "Explain entropy to a child.",
)
"""Prompts that no expert is for."""


def errands(num: int, *, seed: int, new: bool) -> Mapping[str, list[str]]:
    """num prompts of each sort. new: only ways of putting action and object together that others never
    have."""
    rng = np.random.default_rng([seed, new])
    return {
        f"{action} {kind}": [_prompt(rng, action, kind, new) for _ in range(num)]
        for action in ACTIONS
        for kind in OBJECTS
    }


def _prompt(rng: np.random.Generator, action: str, kind: str, new: bool) -> str:
    first = int(rng.integers(5))
    second = (first + (0 if new else int(rng.integers(1, 5)))) % 5
    things = ", ".join(_thing(rng, kind) for _ in range(rng.integers(3, 7)))
    return ACTIONS[action][first].format(OBJECTS[kind][second].format(things))


def _thing(rng: np.random.Generator, kind: str) -> str:
    if kind == "numbers":
        return str(rng.integers(1, 1000))
    if kind == "dates":
        return f"{rng.integers(1, 29)} {rng.choice(MONTHS)}"
    return str(rng.choice(WORDS if kind == "words" else FOODS))
