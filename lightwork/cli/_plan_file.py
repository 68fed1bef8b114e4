"""A plan file: MODEL, --on and --use, written down once.

    model = "tiny:llama"
    on = "cpu"
    use = ["Sarathi(chunk=256)", "Ngram(k=4)"]

What the command line says replaces what the file says.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from lightwork.errors import SpecError
from lightwork.techniques import nearest, parse_all

MAX_BYTES = 1 << 20
KEYS = {"model": str, "on": str, "use": list}


class Chosen(NamedTuple):
    """What to serve, where, and with which techniques, as texts."""

    model: str
    on: str
    use: tuple[str, ...]


def choose(model: str, on: str | None, use: tuple[str, ...], default_on: str) -> Chosen:
    """Model, place and techniques of a command line, from a plan file where MODEL ends in .toml.

    Raises SpecError for a file or a technique that cannot be understood, before anything is loaded.
    """
    plan: dict[str, Any] = _read(Path(model)) if model.endswith(".toml") else {"model": model}
    chosen = Chosen(plan["model"], on or plan.get("on", default_on), use or tuple(plan.get("use", ())))
    parse_all(chosen.use)
    return chosen


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise SpecError(f"{file.name} has {file.stat().st_size} bytes", expected=f"at most {MAX_BYTES}")
        plan = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{file} cannot be read: {error.strerror}", expected="a plan file") from error
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{file.name} is not TOML: {error}", expected=", ".join(KEYS)) from error
    for key, value in plan.items():
        if key not in KEYS:
            near = nearest(key, KEYS)
            raise SpecError(f"{file.name} has an unknown key {key[:40]!r}", expected=near or ", ".join(KEYS))
        if not isinstance(value, KEYS[key]) or (key == "use" and not all(isinstance(v, str) for v in value)):
            wanted = "a list of strings" if key == "use" else "a string"
            raise SpecError(f"{key} in {file.name} is {str(value)[:40]!r}", expected=wanted)
    if "model" not in plan:
        raise SpecError(f"{file.name} names no model", expected="model", fix='model = "tiny:llama"')
    return plan
