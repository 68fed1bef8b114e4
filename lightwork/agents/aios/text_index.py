"""Search over texts by words: BM25, kept up to date as texts come and go."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from math import log

WORD = re.compile(r"\w+")
K1, B = 1.2, 0.75
"""How soon more of the same word stops to count, and how much long texts are held to be only long."""


class TextIndex:
    """Texts by name. Published in "Okapi at TREC-3", 1994."""

    def __init__(self) -> None:
        self._words: dict[str, Counter[str]] = {}
        self._holders: dict[str, dict[str, int]] = {}
        self._length = 0

    def put(self, name: str, text: str) -> None:
        """Add a text, or another one in its place."""
        self.drop(name)
        words = self._words[name] = Counter(WORD.findall(text.lower()))
        self._length += words.total()
        for word, times in words.items():
            self._holders.setdefault(word, {})[name] = times

    def drop(self, name: str) -> None:
        """Forget a text, if it is known."""
        words = self._words.pop(name, Counter())
        self._length -= words.total()
        for word in words:
            del self._holders[word][name]
            if not self._holders[word]:
                del self._holders[word]

    def search(self, query: str, most: int) -> list[tuple[str, float]]:
        """Names and scores of the texts that have a word of the query, the best first."""
        scores: defaultdict[str, float] = defaultdict(float)
        mean = self._length / max(1, len(self._words))
        for word in set(WORD.findall(query.lower())):
            holders = self._holders.get(word, {})
            rare = log(1 + (len(self._words) - len(holders) + 0.5) / (len(holders) + 0.5))
            for name, times in holders.items():
                long = 1 - B + B * self._words[name].total() / mean
                scores[name] += rare * times * (K1 + 1) / (times + K1 * long)
        return sorted(scores.items(), key=lambda one: (-one[1], one[0]))[:most]
