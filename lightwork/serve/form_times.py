"""How long a drafter takes on this machine, measured once before serving.

What is decided by it while serving never depends on a clock. Texts are random, so that a lookup searches all
of them; a draft model writes all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightwork.cluster.devices import Curve, interpolate
from lightwork.decode.constraints import Matcher
from lightwork.decode.proposers import MAX_NODES, ROOT, Draft, Drafter
from lightwork.decode.sampling import Pick, Sampling
from lightwork.decode.verifiers import Verdict
from lightwork.runtime.clock import WallClock
from lightwork.serve.row_times import typical

TEXTS = (1, 4, 16)
SHORT, LONG = 32, 512
"""Tokens of the texts; one that is long tells what each token adds."""
REPEATS = 5


@dataclass(frozen=True, slots=True)
class Depth:
    """Drafts of so many rows. curve: (texts of SHORT tokens, seconds), never falling; of more texts than it
    has, each takes the same. token_s: what each token of a text adds."""

    rows: int
    curve: Curve
    token_s: float

    def seconds(self, texts: int, context: float) -> float:
        short_s = interpolate(self.curve, texts) * max(1.0, texts / self.curve[-1][0])
        return short_s + texts * max(0.0, context - SHORT) * self.token_s


@dataclass(frozen=True, slots=True)
class FormTimes:
    """least, most: drafts of one row, and of all that one can have; in between seconds are taken for linear.

    beside: see `Effort`. opening_token_s: what each token of a text takes that had no draft before.
    """

    least: Depth
    most: Depth
    beside: bool
    opening_token_s: float = 0.0

    @classmethod
    def told(cls, told: Mapping[str, Any]) -> FormTimes:
        """From what `asdict` made of it, and a file of JSON kept."""
        least, most = (
            Depth(depth["rows"], tuple(map(tuple, depth["curve"])), depth["token_s"])
            for depth in (told["least"], told["most"])
        )
        return cls(least, most, told["beside"], told["opening_token_s"])

    def seconds(self, texts: int, rows: int, context: float) -> float:
        least_s = self.least.seconds(texts, context)
        if rows <= self.least.rows or self.most.rows == self.least.rows:
            return least_s
        share = (rows - self.least.rows) / (self.most.rows - self.least.rows)
        return least_s + share * max(0.0, self.most.seconds(texts, context) - least_s)

    def opening_s(self, context: float) -> float:
        return self.opening_token_s * context


@dataclass(slots=True)
class _Text:
    """A text that is made up. id: negative, which no sequence has."""

    id: int
    tokens: list[int]
    prompt_len: int
    sampling: Sampling
    matcher: Matcher | None = None


def measure_forming(drafter: Drafter, vocab_size: int, *, max_seqs: int, max_len: int) -> FormTimes:
    """Each size a few times; a draft model takes some ninety passes, one of them over a long text.

    vocab_size: of the target. max_seqs, max_len: see `Target`. Raises whatever the drafter does.
    """
    bench = _Bench(drafter, vocab_size)
    room = max_len - (REPEATS + 2) * (1 + drafter.k)
    short, long = (max(1, min(length, room)) for length in (SHORT, LONG))
    sizes = [num for num in TEXTS if num <= max_seqs]

    def depth(rows: int) -> Depth:
        curve: list[tuple[float, float]] = []
        for num in sizes:
            curve.append((num, max(bench.seconds(num, rows, short), curve[-1][1] if curve else 0.0)))
        longer_s = bench.seconds(1, rows, long) - curve[0][1] if long > short else 0.0
        return Depth(rows, tuple(curve), max(0.0, longer_s) / max(1, long - short))

    bench.seconds(1, drafter.k, short)  # what is slow the first time only
    opening_s = typical([bench.opening_s(long) for _ in range(REPEATS)])
    return FormTimes(depth(1), depth(drafter.k), drafter.effort.beside, opening_s / long)


class _Bench:
    """Asks for drafts of texts, none of which hold, and tells so, as an engine would."""

    def __init__(self, drafter: Drafter, vocab_size: int) -> None:
        self._drafter = drafter
        self._vocab_size = vocab_size
        self._clock = WallClock()
        self._rng = np.random.default_rng(0)
        self._last = 0

    def seconds(self, num: int, rows: int, length: int) -> float:
        """Of one time; the first, in which texts are new, does not count."""
        texts = [self._text(length) for _ in range(num)]
        took_s = [self._ask(texts, rows) for _ in range(1 + REPEATS)][1:]
        for text in texts:
            self._drafter.forget(text.id)
        return typical(took_s)

    def opening_s(self, length: int) -> float:
        """What a new text takes more than one that is known; what is written beside is waited for later."""
        text = self._text(length)
        first_s, second_s, third_s = (self._ask([text], 1) for _ in range(3))
        self._drafter.forget(text.id)
        return max(0.0, first_s - third_s, second_s - third_s)

    def _text(self, length: int) -> _Text:
        self._last -= 1
        tokens: list[int] = self._rng.integers(0, self._vocab_size, length).tolist()
        return _Text(self._last, tokens, length, Sampling(temperature=0.0))

    def _ask(self, texts: Sequence[_Text], rows: int) -> float:
        said: list[int] = self._rng.integers(0, self._vocab_size, len(texts)).tolist()
        begin_s = self._clock.now()
        drafts = self._drafter.propose(texts, [rows] * len(texts))
        for draft in drafts:
            draft.check(repr(self._drafter), rows, self._vocab_size, MAX_NODES)
        took_s = self._clock.now() - begin_s
        verdicts = [self._verdict(*one) for one in zip(drafts, said, strict=True)]
        begin_s = self._clock.now()
        for text, draft, verdict in zip(texts, drafts, verdicts, strict=True):
            if draft:
                self._drafter.accept([text], [verdict])
        took_s += self._clock.now() - begin_s
        for text, token in zip(texts, said, strict=True):
            text.tokens.append(token)
        return took_s

    def _verdict(self, draft: Draft, token: int) -> Verdict:
        """The target says something else."""
        probes = draft.probes(ROOT)
        scores = self._rng.random((len(probes), self._vocab_size), np.float32) if probes else None
        return Verdict((Pick(token),), (), scores)
