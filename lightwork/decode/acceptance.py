"""How often guesses have held, and what a chain of more guesses is therefore worth."""

from __future__ import annotations

from dataclasses import dataclass

KEEP = 0.9
"""What one verdict leaves of the weight of those before it."""
DOUBT = 2.0
"""Trials that what is known beforehand counts for."""


@dataclass(slots=True)
class Acceptance:
    """Running counts of the guesses that held, and of those that did not, the latest with the most weight.

    A guess behind a wrong one was not tried, and counts for nothing.
    """

    hits: float = 0.0
    misses: float = 0.0

    def observe(self, drafted: int, accepted: int) -> None:
        """A chain of `drafted` tokens was verified, of which the first `accepted` held."""
        self.hits = KEEP * self.hits + accepted
        self.misses = KEEP * self.misses + (accepted < drafted)

    def rate(self, before: float) -> float:
        """The share of guesses that hold, from 0 to 1. before: what it would be taken for without trials."""
        return (self.hits + DOUBT * before) / (self.hits + self.misses + DOUBT)


def chain_gain(rate: float, rows: int) -> list[float]:
    """Tokens that each row of a chain adds on average: the i-th holds if all i do, rate**i."""
    return [rate**i for i in range(1, rows + 1)]
