"""How often guesses have held, and what a chain of more guesses is therefore worth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

KEEP = 0.9
"""What one verdict leaves of the weight of those before it, in one text."""
DOUBT = 2.0
"""Trials that what is known beforehand counts for."""


@dataclass(slots=True)
class Acceptance:
    """Running counts of the guesses that held, and of those that did not, the latest with the most weight;
    and of how often there was a guess when one was asked for. keep: what each trial leaves of those before.

    A guess behind a wrong one was not tried, and counts for nothing.
    """

    hits: float = 0.0
    misses: float = 0.0
    answered: float = 0.0
    silent: float = 0.0
    keep: float = KEEP

    def observe(self, drafted: int, accepted: int) -> None:
        """A chain of `drafted` tokens was verified, of which the first `accepted` held."""
        self.hits = self.keep * self.hits + accepted
        self.misses = self.keep * self.misses + (accepted < drafted)

    def ask(self, *, answered: bool) -> None:
        """A draft was asked for, and there was one or not."""
        self.answered = self.keep * self.answered + answered
        self.silent = self.keep * self.silent + (not answered)

    def rate(self, before: float) -> float:
        """The share of guesses that hold, from 0 to 1. before: what it would be taken for without trials."""
        return (self.hits + DOUBT * before) / (self.hits + self.misses + DOUBT)

    def answers(self, before: float) -> float:
        """The share of times that there is a draft, likewise."""
        return (self.answered + DOUBT * before) / (self.answered + self.silent + DOUBT)


@lru_cache(maxsize=1024)
def chain_gain(rate: float, rows: int) -> tuple[float, ...]:
    """Tokens that each row of a chain adds on average: the i-th holds if all i do, rate**i."""
    return tuple(rate**i for i in range(1, rows + 1))
