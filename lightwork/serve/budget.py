"""How many rows each sequence's draft gets: as many as make tokens per second rise, by the cost model.

Seconds come from the engine's cost model and never from a clock, so the real and the simulated engine decide
alike. A chunk of c tokens counts as c tokens that the step brings forward, a draft's row as the tokens that
its proposer expects of it. A row costs what the target takes for it, and what its proposer takes to form it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from statistics import fmean
from typing import NamedTuple

from lightwork.cluster.devices import Curve, interpolate
from lightwork.decode.acceptance import Acceptance
from lightwork.decode.proposers import Draft
from lightwork.serve.forming import Forming, together
from lightwork.serve.schedulers import Step

ASSUMED = 1 / 32
"""Where no cost model is at hand, a row makes a step longer by this share of one without rows."""
PROBES = 0.005
"""Share of the time that drafts may take which are not worth it, so that statistics follow the text."""
LEAST = 0.004
"""Rows that are expected to add fewer tokens are not considered."""
UNKNOWN = 0.5
"""What the rate of acceptance is taken for, before any trial."""
REST = 8
"""Steps for which drafts that do not pay are taken not to pay, or fewer until it is time to learn: with a
small model, finding out takes a twentieth of a step."""
SHORTEST_S = 1e-12
"""No step is predicted to take less."""


class Offer(NamedTuple):
    """Rows for each chunk. asked_s, rows_s: of a draft that is only to learn from, what it takes to ask for
    it, and what its rows take if there are any."""

    rows: list[int]
    asked_s: float = 0.0
    rows_s: float = 0.0


@dataclass(slots=True)
class Budget:
    """predict: seconds of a step, see `View`. forming: what drafts take; None: nothing. overall: how the
    guesses of all sequences have held."""

    predict: Callable[[Step], float] | None = None
    forming: Forming | None = None
    overall: Acceptance = field(default_factory=Acceptance)
    _saved_s: float = 0.0
    _turn: int = 0
    _rest: int = 0
    _rested: int = 0
    _like: tuple[int, int] | None = None

    def rate(self, seen: Acceptance) -> float:
        """What of a sequence's next guesses will hold: its own count, in doubt that of all."""
        return seen.rate(self.overall.rate(UNKNOWN))

    def rests(self, step: Step) -> bool:
        """Whether drafts were not worth it lately, beside as many sequences and tokens of them as now."""
        if self._rested >= self._rest or self._like != (len(step.chunks), step.num_rows):
            return False
        self._rested += 1
        return True

    def offer(
        self, step: Step, gains: Sequence[Sequence[float]], room: int, answers: Sequence[float] = ()
    ) -> Offer:
        """Greedily, the row that adds most first, up to the number with the most tokens per second.

        gains: for each chunk what each more row of it adds, never rising; () where no draft may be. room:
        rows left of the scheduler's budget. answers: for each chunk, how often there is a draft when one is
        asked for; () if always.
        """
        answers = answers or [1.0] * len(gains)
        tokens = float(sum(chunk.count for chunk in step.chunks))
        context = fmean(chunk.end for chunk in step.chunks) if self.forming is not None else 0.0
        curve = self._curve(step, (0, 1))
        (_, base_s), (_, one_s) = curve
        rows = [0] * len(gains)
        hoped = sum(answer * sum(of) for of, answer in zip(gains, answers, strict=True) if of)
        least_s = base_s + min(answers) * (one_s - base_s)
        if (tokens + hoped) * base_s > tokens * self._with_forming(least_s, 1, 1, context):
            rows = self._best(step, curve, gains, room, answers, context)
        offer = Offer(rows) if any(rows) else self._probe(base_s, one_s, context, gains)
        self._rested = 0
        self._like = None if any(offer.rows) else (len(step.chunks), step.num_rows)
        return offer

    def spent(self, offer: Offer, *, answered: bool) -> None:
        """What was offered was asked for, and there was a draft or not."""
        self._saved_s -= offer.asked_s + offer.rows_s * answered

    def formed(self, step: Step, offer: Offer) -> tuple[float, float]:
        """Seconds that forming what was offered takes: before the step, and while it is computed."""
        if self.forming is None:
            return 0.0, 0.0
        context = fmean(chunk.end for chunk in step.chunks)
        seconds = self.forming.seconds(sum(map(bool, offer.rows)), max(offer.rows), context)
        return (0.0, seconds) if self.forming.beside else (seconds, 0.0)

    def _best(
        self,
        step: Step,
        curve: Curve,
        gains: Sequence[Sequence[float]],
        room: int,
        answers: Sequence[float],
        context: float,
    ) -> list[int]:
        """Rows for each chunk, 0 for all if no number of them pays. curve: for 0 and 1 more rows."""
        ranked = sorted(
            (-gain * answers[i], depth, i)
            for i, of in enumerate(gains)
            for depth, gain in enumerate(of, 1)
            if gain * answers[i] >= LEAST
        )[:room]
        most = len(ranked)
        if most > 1:
            curve = self._curve(
                step, [*(1 << i for i in range(1, most.bit_length()) if 1 << i < most), most], curve
            )
        tokens = float(sum(chunk.count for chunk in step.chunks))
        best, highest = 0, tokens / curve[0][1]
        num_rows, texts, deepest = 0.0, 0, 0
        for n, (loss, depth, i) in enumerate(ranked, 1):
            tokens -= loss
            num_rows += answers[i]
            texts += depth == 1
            deepest = max(deepest, depth)
            seconds = self._with_forming(interpolate(curve, num_rows), texts, deepest, context)
            if tokens / seconds > highest:
                best, highest = n, tokens / seconds
        rows = [0] * len(gains)
        for _, _, i in ranked[:best]:
            rows[i] += 1
        return rows

    def _probe(self, base_s: float, one_s: float, context: float, gains: Sequence[Sequence[float]]) -> Offer:
        """One row for one sequence after the other, whenever enough time was saved up for it.

        What is written beside a step is there for the next one: the same sequence is asked twice.
        """
        times = 2 if self.forming is not None and self.forming.beside else 1
        asked_s = self._with_forming(base_s, 1, 1, context) - base_s
        rows_s = max(0.0, self._with_forming(one_s, 1, 1, context) - base_s - asked_s)
        cost_s, share_s = times * asked_s + rows_s, PROBES * base_s
        self._saved_s += share_s * (1 + self._rested)
        self._saved_s = min(self._saved_s, max(cost_s, share_s))
        self._rest = min(REST, int((cost_s - self._saved_s) / share_s))
        rows = [0] * len(gains)
        open_to = [i for i, of in enumerate(gains) if of]
        begins = self._turn % times == 0
        if not open_to or (begins and self._saved_s < cost_s):
            return Offer(rows)
        rows[open_to[self._turn // times % len(open_to)]] = 1
        self._turn += 1
        return Offer(rows, asked_s, rows_s)

    def _with_forming(self, target_s: float, texts: int, rows: int, context: float) -> float:
        if self.forming is None:
            return target_s
        return together(target_s, self.forming.seconds(texts, rows, context), beside=self.forming.beside)

    def _curve(self, step: Step, points: Sequence[int], before: Curve = ()) -> Curve:
        """Predicted for so many more rows; never falling, and never 0. before: of fewer rows."""
        curve = [*before]
        longest_s = before[-1][1] if before else SHORTEST_S
        for rows in points:
            longest_s = max(longest_s, self._predicted(step, rows))
            curve.append((rows, longest_s))
        return tuple(curve)

    def _predicted(self, step: Step, rows: int) -> float:
        if self.predict is None:
            return 1.0 + ASSUMED * (step.num_rows + rows)
        if not rows:
            return self.predict(step)
        share, rest = divmod(rows, len(step.chunks))
        step.drafts = [_any_draft(share + (i < rest)) for i in range(len(step.chunks))]
        try:
            return self.predict(step)
        finally:
            step.drafts = []


@cache
def _any_draft(rows: int) -> Draft:
    return Draft.chain([0] * rows)
