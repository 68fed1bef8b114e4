"""The kind that says when requests come and how long they are. One file per load."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from lightwork.errors import SpecError


class Arrival(NamedTuple):
    """One request to come: when, in seconds from the start, and its lengths in tokens."""

    at_s: float
    prompt_len: int
    output_len: int


class Load(Protocol):
    """A finite list of arrivals, in order of time, the same for the same random stream."""

    def arrivals(self, rng: np.random.Generator) -> list[Arrival]: ...


def lengths(rng: np.random.Generator, median: int, sigma: float, num: int, most: int = 1 << 20) -> list[int]:
    """Lognormal token counts around a median.

    Sigma 0 gives the median each time. At least 1, at most `most`.
    """
    drawn = median * np.exp(sigma * rng.standard_normal(num))
    return [int(n) for n in np.clip(np.rint(drawn), 1, most)]


def parse_load(text: str) -> Load:
    """The load that a text like 'Poisson(rate=4)' names. Raises SpecError."""
    from lightwork.techniques import kind_of, parse

    load = parse(text)
    if kind_of(load) != "load":
        raise SpecError(f"{text} is a {kind_of(load)}", expected="a load", fix="Poisson(rate=4)")
    found: Load = load
    return found
