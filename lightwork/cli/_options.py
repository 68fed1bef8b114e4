"""Options that several verbs share, so that they mean and say the same everywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from lightwork.cli import _completion
from lightwork.errors import RangeError, SpecError

if TYPE_CHECKING:
    from lightwork.serve.metrics import Slo

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

model = click.argument("model", shell_complete=_completion.model)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
use = click.option(
    "--use",
    multiple=True,
    metavar="TECHNIQUE",
    shell_complete=_completion.technique(),
    help="Switch on a technique, e.g. 'Sarathi(chunk=256)'. Repeatable, one per kind.",
)
seed = click.option("--seed", type=int, default=0, show_default=True, help="Seed of every random choice.")
trace = click.option(
    "--trace",
    type=click.Path(),
    metavar="PATH",
    help="Keep the run: a FILE.json is a Chrome trace, any other name a folder to `lightwork run` again.",
)
tp = click.option(
    "--tp",
    type=click.IntRange(1),
    help="Ranks that share each layer: processes on cpu, devices when simulated.",
)
pp = click.option("--pp", type=click.IntRange(1), help="Pipeline stages, each of some layers, likewise.")
depth = click.option(
    "--depth", type=click.IntRange(1, 2), help="2 forms each step while the one before it computes."
)


def load(default: str) -> Decorator:
    """A load, as an expression."""
    return click.option(
        "--load",
        default=default,
        show_default=True,
        shell_complete=_completion.technique("load"),
        help="How requests arrive, as an expression.",
    )


def on(default: str, words: str) -> Decorator:
    """Where it runs; None if unset, for a plan file may say it."""
    said = f"{words}  [default: {default}]"
    return click.option("--on", metavar="PLACE", shell_complete=_completion.place, help=said)


def slo(*, required: bool) -> Decorator:
    """What each request is promised, to be read by `parse_slo`."""
    words = "Seconds to the first token and per further one: ttft=0.5,tpot=0.05."
    return click.option("--slo", required=required, help=words)


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


def parse_slo(text: str) -> Slo:
    """The promise of a text like ttft=0.5,tpot=0.05. Raises SpecError."""
    from lightwork.serve.metrics import Slo

    given: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            if name.strip() not in ("ttft", "tpot"):
                raise ValueError
            given[f"{name.strip()}_s"] = float(value)
        except ValueError:
            raise SpecError(
                f"--slo has {part[:40]!r}",
                expected="ttft and tpot in seconds",
                fix="--slo ttft=0.5,tpot=0.05",
            ) from None
    return Slo(**given)
