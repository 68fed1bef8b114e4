"""A population from a configuration: how many agents are of which sort, exactly, and who is what.

    {"total_num": 1000,
     "distributions": [
       {"name": "education", "categories": [
         {"category_name": "school", "percentage": 0.7, "attributes": {"education": "left school at 16"}},
         {"category_name": "university", "percentage": 0.3, "attributes": {"education": "a degree"}}]}]}

An agent is of one category of each distribution, and has the attributes of all of them. Counts are those of
the largest remainders (Hamilton's method): each category gets the whole part of its share, and what is left
goes, one each, to the largest fractions, first listed first. Shares are taken as the decimals that were
written, so that 0.29 of 100 is 29. Each distribution is dealt out on its own, so that they are independent.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightwork._listing import nearest
from lightwork.errors import RangeError, SpecError
from lightwork.runtime.kernel import random_stream

MAX_BYTES = 1 << 24
MAX_AGENTS = 100_000_000
TOLERANCE = Fraction(1, 100)
"""By how much shares may miss 1 or 100: three thirds are written as 33.3 each. They are then scaled."""


@dataclass(frozen=True, slots=True)
class Category:
    """share: of all agents, 0 to 1, as it was written."""

    name: str
    share: Fraction
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Distribution:
    name: str
    categories: tuple[Category, ...]

    def counts(self, total: int) -> tuple[int, ...]:
        """Agents in each category, `total` together."""
        return largest_remainders([c.share for c in self.categories], total)


@dataclass(frozen=True, slots=True)
class PopulationSpec:
    """What a configuration says. Raises SpecError and RangeError, naming the place, for one that is wrong."""

    total: int
    distributions: tuple[Distribution, ...]

    @classmethod
    def of(cls, said: Mapping[str, Any], total: int | None = None) -> PopulationSpec:
        """total: how many agents there are, instead of total_num."""
        _known("population", said, {"total_num", "distributions"})
        num = said.get("total_num") if total is None else total
        if isinstance(num, bool) or not isinstance(num, int) or not 1 <= num <= MAX_AGENTS:
            raise RangeError(f"total_num is {num!r}", expected=f"a whole number from 1 to {MAX_AGENTS:,}")
        listed = said.get("distributions", [])
        if not isinstance(listed, list):
            raise SpecError(f"distributions is {_short(listed)}", expected="a list")
        distributions = tuple(_distribution(i, d) for i, d in enumerate(listed))
        _once("distributions are named", [d.name for d in distributions])
        owner: dict[str, str] = {}
        for d in distributions:
            for key in {key for c in d.categories for key in c.attributes}:
                if owner.setdefault(key, d.name) != d.name:
                    raise SpecError(
                        f"attribute {key!r} is in the distributions {owner[key]!r} and {d.name!r}",
                        expected="each attribute in one distribution: an agent has one value of it",
                    )
        return cls(num, distributions)

    def values(self, attribute: str) -> list[Any]:
        """What categories say of an attribute."""
        categories = [c for d in self.distributions for c in d.categories]
        return [c.attributes[attribute] for c in categories if attribute in c.attributes]

    def deal(self, seed: int) -> Population:
        """Who is of which category: the same for the same seed."""
        dealt = []
        for d in self.distributions:
            codes = np.repeat(np.arange(len(d.categories), dtype=np.uint16), d.counts(self.total))
            random_stream(seed, f"population {d.name}").shuffle(codes)
            dealt.append(codes)
        return Population(self, tuple(dealt))


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """codes: for each distribution, the category of every agent, [total]; two bytes per agent."""

    spec: PopulationSpec
    codes: tuple[NDArray[np.uint16], ...]

    def __len__(self) -> int:
        return self.spec.total

    def attributes(self, agent: int) -> dict[str, Any]:
        """Those of an agent's categories, together."""
        if not 0 <= agent < len(self):
            raise RangeError(f"there is no agent {agent}", expected=f"0 to {len(self) - 1}")
        merged: dict[str, Any] = {}
        for d, codes in zip(self.spec.distributions, self.codes, strict=True):
            merged |= d.categories[codes[agent]].attributes
        return merged

    def column(self, attribute: str, default: Any = None) -> list[Any]:
        """An attribute of all agents, in order."""
        for d, codes in zip(self.spec.distributions, self.codes, strict=True):
            if any(attribute in c.attributes for c in d.categories):
                values = [c.attributes.get(attribute, default) for c in d.categories]
                return [values[code] for code in codes.tolist()]
        return [default] * len(self)

    def counts(self) -> dict[str, dict[str, int]]:
        """Agents by category, by distribution, as dealt."""
        return {
            d.name: dict(
                zip(
                    [c.name for c in d.categories],
                    np.bincount(codes, minlength=len(d.categories)).tolist(),
                    strict=True,
                )
            )
            for d, codes in zip(self.spec.distributions, self.codes, strict=True)
        }


def largest_remainders(shares: Sequence[Fraction], total: int) -> tuple[int, ...]:
    """Whole numbers that add up to total, each within one of its share of it; shares may have any sum."""
    whole = sum(shares)
    quotas = [total * share / whole for share in shares]
    counts = [floor(q) for q in quotas]
    by_fraction = sorted(
        range(len(quotas)), key=lambda i: counts[i] - quotas[i]
    )  # stable: first listed first
    for i in by_fraction[: total - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


def read_config(file: Path) -> dict[str, Any]:
    """A JSON, TOML or YAML file as plain values. Raises SpecError for what is none of these."""
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(f"{file} cannot be read: {error.strerror or error}", expected="a file") from error
    if len(data) > MAX_BYTES:
        raise SpecError(f"{file} is larger than {MAX_BYTES >> 20} MiB", expected="a configuration")
    said = parse_config(data, file)
    if not isinstance(said, dict):
        raise SpecError(f"{file} holds {_short(said)}", expected="keys and values")
    return said


def parse_config(data: bytes, file: Path) -> Any:
    """By the ending of the file's name: .json, .toml, else YAML, which JSON is a part of."""
    import yaml

    try:
        text = data.decode("utf-8")
        if file.suffix == ".toml":
            return tomllib.loads(text)
        return json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        first = str(error).partition("\n")[0]
        raise SpecError(f"{file} cannot be understood: {first}", expected="JSON, TOML or YAML") from error


def _distribution(i: int, said: Any) -> Distribution:
    where = f"distributions[{i}]"
    _known(where, said, {"name", "categories"})
    name, listed = said.get("name"), said.get("categories")
    if not isinstance(name, str) or not name:
        raise SpecError(f"{where} has the name {_short(name)}", expected="a text")
    if not isinstance(listed, list) or not listed or len(listed) > 1 << 16:
        raise SpecError(f"distribution {name!r} has categories {_short(listed)}", expected="a list of some")
    read = [_category(f"{name!r}, categories[{j}]", c) for j, c in enumerate(listed)]
    _once(f"categories of {name!r} are named", [c.name for c in read])
    whole = sum((c.share for c in read), Fraction())
    unit = 100 if whole > 1 + TOLERANCE else 1
    if abs(whole / unit - 1) > TOLERANCE:
        raise RangeError(f"percentages of {name!r} sum to {float(whole):g}", expected="1 or 100, within 1 %")
    return Distribution(name, tuple(Category(c.name, c.share / whole, c.attributes) for c in read))


def _category(where: str, said: Any) -> Category:
    _known(where, said, {"category_name", "percentage", "attributes"})
    name, share, attributes = (said.get(k) for k in ("category_name", "percentage", "attributes"))
    if not isinstance(name, str) or not name:
        raise SpecError(f"{where} has the category_name {_short(name)}", expected="a text")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 100:
        raise RangeError(f"{where} has the percentage {_short(share)}", expected="0 to 1, or 0 to 100")
    if attributes is None:
        attributes = {}
    if not isinstance(attributes, dict) or not all(isinstance(key, str) for key in attributes):
        raise SpecError(f"{where} has attributes {_short(attributes)}", expected="names and values")
    return Category(name, Fraction(repr(share)), attributes)


def _known(where: str, said: Any, names: set[str]) -> None:
    if not isinstance(said, Mapping):
        raise SpecError(f"{where} is {_short(said)}", expected=f"an object with {', '.join(sorted(names))}")
    for key in said:
        if key not in names:
            near = nearest(str(key), names)
            raise SpecError(f"{where} has the key {_short(key)}", expected=near or ", ".join(sorted(names)))


def _once(what: str, names: Sequence[str]) -> None:
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise SpecError(f"two {what} {twice[0]!r}", expected="each name once")


def _short(value: Any) -> str:
    return repr(value)[:60]
