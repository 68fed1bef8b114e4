"""The kind that says when requests come; how long they are is another, `Length`. One file per load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from lightwork.errors import SpecError


class Arrival(NamedTuple):
    """One request to come: when, and its lengths in tokens.

    at_s: seconds from the start or, if `after` is the number of another arrival, from when that one has
    ended. prompt_len: tokens of its own. They follow what is shared: with `continues` all that `after` read
    and wrote; else the first shared_len tokens of the text numbered `shared`. tenant: who sends it. model:
    of which it is asked.
    """

    at_s: float
    prompt_len: int
    output_len: int
    after: int | None = None
    continues: bool = False
    shared: int = 0
    shared_len: int = 0
    tenant: str = ""
    model: str = ""


class Load(Protocol):
    """Arrivals, those without `after` in order of time, the same for the same random stream."""

    def arrivals(self, rng: np.random.Generator) -> list[Arrival]: ...


@dataclass(frozen=True, slots=True)
class Given:
    """A load that is known already, whatever the random stream."""

    given: Sequence[Arrival]

    def arrivals(self, rng: np.random.Generator) -> list[Arrival]:
        return [*self.given]


def parse_load(text: str) -> Load:
    """The load that a text like 'Poisson(rate=4)' names. Raises SpecError."""
    from lightwork.techniques import kind_of, parse

    load = parse(text)
    if kind_of(load) != "load":
        raise SpecError(f"{text} is a {kind_of(load)}", expected="a load", fix="Poisson(rate=4)")
    found: Load = load
    return found
