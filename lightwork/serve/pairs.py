"""Which techniques serve together, two by two.

`lightwork techniques --matrix` shows it; `tests/serve/test_pairs.py` serves a load with every pair, in each
world that does not refuse it. A plan refuses, so there is no list to keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

from lightwork.errors import SpecError
from lightwork.serve.plan import SERVED_KINDS, Plan
from lightwork.techniques import Technique, holds, listing, parse

PLACES = {"real": "cpu", "simulated": "sim:a100x2"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two techniques by name.

    field: of the first, which holds the second; empty if a plan has both. refused: by world, why there.
    """

    first: str
    second: str
    field: str
    refused: Mapping[str, str]


def combined(field: str, first: Any, second: Any) -> tuple[Any, ...]:
    """What a plan uses for a pair with this field."""
    return (replace(first, **{field: second}),) if field else (first, second)


@cache
def paired() -> list[Technique]:
    """Every technique that a plan takes, or that one of these holds, by kind.

    Not those that are installed beside lightwork, which its tests do not know. Raises MissingExtraError.
    """
    ours = [technique for technique in listing() if technique.module.startswith("lightwork.")]
    served = [technique for technique in ours if technique.kind in SERVED_KINDS]
    kinds = {*SERVED_KINDS}.union(*(holds(technique) for technique in served))
    return [technique for technique in ours if technique.kind in kinds]


def pairs() -> list[Pair]:
    """Each combination once; of two that can hold each other, both ways. Raises MissingExtraError."""
    techniques = paired()
    order = {technique.name: i for i, technique in enumerate(techniques)}
    held = {technique.name: holds(technique) for technique in techniques}
    found = []
    for first, second in product(techniques, techniques):
        field = held[first.name].get(second.kind, "")
        beside = {first.kind, second.kind} <= {*SERVED_KINDS} and first.kind != second.kind
        if (field and first != second) or (beside and order[first.name] < order[second.name]):
            refused = _refusals(combined(field, parse(first.name), parse(second.name)))
            found.append(Pair(first=first.name, second=second.name, field=field, refused=refused))
    return found


def _refusals(use: tuple[Any, ...]) -> dict[str, str]:
    refused = {}
    for world, place in PLACES.items():
        try:
            Plan(on=place, use=use).techniques()
        except SpecError as error:
            refused[world] = f"{error.wrong}; expected {error.expected}"
    return refused
