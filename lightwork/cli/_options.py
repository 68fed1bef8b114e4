"""Options that several verbs share, so that they mean and say the same everywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from lightwork.errors import RangeError

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
use = click.option(
    "--use",
    multiple=True,
    metavar="TECHNIQUE",
    help="Switch on a technique, e.g. 'Sarathi(chunk=256)'. Repeatable, one per kind.",
)
seed = click.option("--seed", type=int, default=0, show_default=True, help="Seed of every random choice.")
trace = click.option(
    "--trace", type=click.Path(dir_okay=False), help="Write the run as a Chrome trace to this file."
)
load = click.option(
    "--load",
    default="Poisson(rate=4)",
    show_default=True,
    help="How requests arrive, as an expression.",
)


def on(default: str, words: str) -> Decorator:
    """Where it runs; None if unset, for a plan file may say it."""
    return click.option("--on", metavar="PLACE", help=f"{words}  [default: {default}]")


def size(text: str) -> int:
    """Bytes of a size with its unit: 512MB (10^6), 2GiB (2^30), or plain bytes."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*(?:([KMGT])(I)?)?B?", text.upper())
    if not found:
        raise RangeError(
            f"{text[:40]!r} is not a size", expected="bytes, or a number and a unit", fix="512MB or 2GiB"
        )
    number, prefix, binary = found.groups()
    power = "KMGT".index(prefix) + 1 if prefix else 0
    return int(float(number) * (1024 if binary else 1000) ** power)
