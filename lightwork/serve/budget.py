"""How many rows each sequence's draft gets: as many as make tokens per second rise, by the cost model.

Seconds come from the engine's cost model and never from a clock, so the real and the simulated engine decide
alike. A chunk of c tokens counts as c tokens that the step brings forward, a draft's row as the tokens that
its proposer expects of it. A row costs what the target takes for it, and what its proposer takes to form it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lightwork.cluster.devices import interpolate
from lightwork.decode.acceptance import Acceptance
from lightwork.serve.forming import Forming
from lightwork.serve.row_prices import RowPrices
from lightwork.serve.schedulers import Step

PROBES = 0.005
"""Share of the time that drafts may take which are not worth it, so that statistics follow the text."""
LEAST = 0.004
"""Rows that are expected to add fewer tokens are not considered."""
UNKNOWN = 0.5
"""What the rate of acceptance is taken for, before any trial."""
REST = 12
"""Steps for which drafts that do not pay are taken not to pay, or fewer until it is time to learn."""


LENGTH = 128.0
"""Tokens that texts are taken to get, before any has ended."""
KEEP, LONG = 0.8, 0.98
"""What one text leaves of the weight of those before it; what a draft of any leaves."""
TRUST = 4.0
"""Tokens that are believed to be rightly hoped for, before it is known how many of those come."""


class Offer(NamedTuple):
    """Rows for each chunk. asked_s, rows_s: of a draft that is only to learn from, what it takes to ask for
    it, and what its rows take if there are any."""

    rows: list[int]
    asked_s: float = 0.0
    rows_s: float = 0.0


class Budget:
    """predict: seconds of a step, see `View`. forming: what drafts take; None: nothing. overall: how the
    guesses of all sequences have held."""

    def __init__(
        self, predict: Callable[[Step], float] | None = None, forming: Forming | None = None
    ) -> None:
        self.overall = Acceptance(keep=LONG)
        self._hoped = self._held = 0.0
        self._prices = RowPrices(predict, forming)
        self._length = LENGTH
        self._saved_s = 0.0
        self._turn = 0
        self._rest = self._rested = 0
        self._like: tuple[int, int] | None = None

    def rate(self, seen: Acceptance) -> float:
        """What of a sequence's next guesses will hold: its own count, in doubt that of all."""
        return seen.rate(self.overall.rate(UNKNOWN))

    def opening_s(self, context: int) -> float:
        """What the first draft of a text of that length takes more than others."""
        return self._prices.opening_s(context)

    def came(self, hoped: float, accepted: int) -> None:
        """Of the tokens that a draft was worth its rows for. Hopes are highest where they are too high."""
        self._hoped = LONG * self._hoped + hoped
        self._held = LONG * self._held + accepted

    def ended(self, num_tokens: int) -> None:
        """A text has ended that got so many tokens."""
        self._length = KEEP * self._length + (1 - KEEP) * num_tokens

    def rests(self, step: Step) -> bool:
        """Whether drafts were not worth it lately, beside as many sequences and no more tokens than now."""
        if self._like is None or self._rested >= self._rest:
            return False
        num, rows = self._like
        if len(step.chunks) != num or step.num_rows < rows:
            return False
        self._rested += 1
        return True

    def offer(
        self,
        step: Step,
        gains: Sequence[Sequence[float]],
        room: int,
        answers: Sequence[float] = (),
        openings_s: Sequence[float] = (),
    ) -> Offer:
        """Greedily, the row that adds most first, up to the number with the most tokens per second.

        gains: for each chunk what each more row of it adds, never rising; () where no draft may be. room:
        rows left of the scheduler's budget. answers: for each chunk, how often there is a draft when one is
        asked for; () if always. openings_s: for each chunk what its first draft takes more, 0 if it had
        one; () if all had. They are an expense for all of the text that is to come.
        """
        answers = answers or [1.0] * len(gains)
        openings_s = openings_s or [0.0] * len(gains)
        tokens = sum(chunk.count for chunk in step.chunks)
        self._prices.look_at(step)
        (_, base_s), (_, one_s) = self._prices.curve(step, 1)
        rows = [0] * len(gains)
        trust = min(1.0, (self._held + TRUST) / (self._hoped + TRUST))
        worth = [trust * answer for answer in answers]
        hoped = sum(share * sum(of) for of, share in zip(gains, worth, strict=True) if of)
        least_s = base_s + min(answers) * (one_s - base_s)
        if (tokens + hoped) * base_s > tokens * self._prices.whole_s(least_s, 1, 1):
            rows = self._best(step, gains, worth, room, answers, openings_s)
        offer = Offer(rows) if any(rows) else self._probe(step, base_s, one_s, gains, openings_s)
        self._rested = 0
        self._like = None if any(offer.rows) else (len(step.chunks), step.num_rows)
        return offer

    def spent(self, offer: Offer, *, answered: bool) -> None:
        """What was offered was asked for, and there was a draft or not."""
        self._saved_s -= offer.asked_s + offer.rows_s * answered

    def formed(self, offer: Offer, opening_s: float) -> tuple[float, float]:
        """Seconds that forming what was offered last takes: before the step, and while it is computed.

        opening_s: of the texts among these that had no draft before.
        """
        seconds = self._prices.forming_s(sum(map(bool, offer.rows)), max(offer.rows)) + opening_s
        return (0.0, seconds) if self._prices.beside else (seconds, 0.0)

    def _best(
        self,
        step: Step,
        gains: Sequence[Sequence[float]],
        worth: Sequence[float],
        room: int,
        answers: Sequence[float],
        openings_s: Sequence[float],
    ) -> list[int]:
        """Rows for each chunk, 0 for all if no number of them pays. worth: share of gains to count on."""
        ranked = sorted(
            (-gain * worth[i], depth, i)
            for i, of in enumerate(gains)
            for depth, gain in enumerate(of, 1)
            if gain >= LEAST
        )[:room]
        tokens = float(sum(chunk.count for chunk in step.chunks))
        curve = self._prices.curve(step, max(1, len(ranked)))
        best, highest = 0, tokens / curve[0][1]
        num_rows, texts, deepest, opening_s = 0.0, 0, 0, 0.0
        for n, (loss, depth, i) in enumerate(ranked, 1):
            tokens -= loss
            num_rows += answers[i]
            deepest = max(deepest, depth)
            if depth == 1:
                texts += 1
                steps = self._length / (1.0 + worth[i] * sum(gains[i]))
                opening_s += openings_s[i] / max(1.0, steps)
            seconds = self._prices.whole_s(interpolate(curve, num_rows), texts, deepest, opening_s)
            if tokens / seconds > highest:
                best, highest = n, tokens / seconds
        rows = [0] * len(gains)
        for _, _, i in ranked[:best]:
            rows[i] += 1
        return rows

    def _probe(
        self,
        step: Step,
        base_s: float,
        one_s: float,
        gains: Sequence[Sequence[float]],
        openings_s: Sequence[float],
    ) -> Offer:
        """One row for one sequence after the other, whenever enough time was saved up; behind one token,
        as its price behind a chunk is less well known.

        What is written beside a step is there for the next one: the same sequence is asked twice.
        """
        rows = [0] * len(gains)
        open_to = [i for i, of in enumerate(gains) if of and step.chunks[i].count == 1]
        self._saved_s += PROBES * base_s * (1 + self._rested)
        self._rest = 0
        if not open_to:
            return Offer(rows)
        times = 2 if self._prices.beside else 1
        who = open_to[self._turn // times % len(open_to)]
        asked_s = self._prices.whole_s(base_s, 1, 1, openings_s[who]) - base_s
        rows_s = max(0.0, self._prices.whole_s(one_s, 1, 1) - self._prices.whole_s(base_s, 1, 1))
        cost_s, share_s = times * asked_s + rows_s, PROBES * base_s
        self._saved_s = min(self._saved_s, max(cost_s, share_s))
        self._rest = min(REST, int((cost_s - self._saved_s) / share_s))
        begins = self._turn % times == 0
        if begins and self._saved_s < cost_s:
            return Offer(rows)
        rows[who] = 1
        self._turn += 1
        return Offer(rows, asked_s, rows_s)
