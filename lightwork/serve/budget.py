"""How many rows each sequence's draft gets: as many as make tokens per second rise, by the cost model.

Seconds come from the engine's cost model and never from a clock, so the real and the simulated engine decide
alike. A chunk of c tokens counts as c tokens that the step brings forward, a draft's row as the tokens that
its proposer expects of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from lightwork.cluster.devices import Curve, interpolate
from lightwork.decode.acceptance import Acceptance
from lightwork.decode.proposers import Draft
from lightwork.serve.schedulers import Step

ASSUMED = 1 / 32
"""Where no cost model is at hand, a row makes a step longer by this share of one without rows."""
PROBES = 0.005
"""Share of the time that drafts may take which are not worth it, so that statistics follow the text."""
LEAST = 0.004
"""Rows that are expected to add fewer tokens are not considered."""
UNKNOWN = 0.5
"""What the rate of acceptance is taken for, before any trial."""


class Offer(NamedTuple):
    """Rows for each of the sequences that were asked for. probe_s: what they cost, if only to learn from."""

    rows: list[int]
    probe_s: float = 0.0


@dataclass(slots=True)
class Budget:
    """predict: seconds of a step, see `View`. overall: how the guesses of all sequences have held."""

    predict: Callable[[Step], float] | None = None
    overall: Acceptance = field(default_factory=Acceptance)
    _saved_s: float = 0.0
    _turn: int = 0

    def rate(self, seen: Acceptance) -> float:
        """What of a sequence's next guesses will hold: its own count, in doubt that of all."""
        return seen.rate(self.overall.rate(UNKNOWN))

    def offer(self, step: Step, gains: Sequence[Sequence[float]], room: int) -> Offer:
        """Greedily, the row that adds most first, up to the number with the most tokens per second.

        gains: for each sequence that may draft, what each more row of it adds; never rising. room: rows left
        of the scheduler's budget.
        """
        ranked = sorted(
            (-gain, depth, i) for i, of in enumerate(gains) for depth, gain in enumerate(of) if gain >= LEAST
        )[:room]
        curve = self._seconds(step, min(room, max(1, len(ranked))))
        base_s, tokens = curve[0][1], float(sum(chunk.count for chunk in step.chunks))
        best, most, rows = 0, tokens / base_s, [0] * len(gains)
        for n, (loss, _, _) in enumerate(ranked, 1):
            tokens -= loss
            if (rate := tokens / interpolate(curve, n)) > most:
                best, most = n, rate
        for _, _, i in ranked[:best]:
            rows[i] += 1
        return Offer(rows) if best else self._probe(curve, gains)

    def spent(self, offer: Offer) -> None:
        """An offer was made use of."""
        self._saved_s -= offer.probe_s

    def _probe(self, curve: Curve, gains: Sequence[Sequence[float]]) -> Offer:
        """One row for one sequence after the other, whenever enough time was saved up for it."""
        (_, base_s), (_, more_s) = curve[:2]
        rows, cost_s = [0] * len(gains), more_s - base_s
        self._saved_s = min(self._saved_s + PROBES * base_s, max(cost_s, PROBES * base_s))
        open_to = [i for i, of in enumerate(gains) if of]
        if not open_to or self._saved_s < cost_s:
            return Offer(rows)
        self._turn += 1
        rows[open_to[self._turn % len(open_to)]] = 1
        return Offer(rows, cost_s)

    def _seconds(self, step: Step, most: int) -> Curve:
        """Predicted for 0, 1, 2, 4, ... and `most` more rows; never falling, and never 0."""
        points = [0, *(1 << i for i in range(most.bit_length()) if 1 << i < most), most]
        curve: list[tuple[float, float]] = []
        longest_s = 1e-12
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
        drafts = [Draft.chain([0] * (share + (i < rest))) for i in range(len(step.chunks))]
        return self.predict(replace(step, drafts=drafts))
