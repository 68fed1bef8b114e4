"""A plan file: MODEL, --on and --use, written down once, and what `lightwork tune` found.

    model = "tiny:llama"
    on = "cpu"
    use = ["Sarathi(chunk=256)", "Ngram(k=4)"]
    max_seqs = 32
    threads = 2

It may also say what is derived otherwise, as the one in a run folder does, which `lightwork run` reads. What
the command line says replaces what the file says.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightwork.errors import SpecError
from lightwork.techniques import nearest, parse_all

if TYPE_CHECKING:
    from lightwork.serve.plan import Plan

MAX_BYTES = 1 << 20
KEYS: dict[str, type] = {
    "model": str,
    "on": str,
    "use": list,
    "max_seqs": int,
    "threads": int,
    "tp": int,
    "pp": int,
    "depth": int,
    "max_len": int,
    "kv_bytes": int,
    "max_waiting": int,
    "prefix_cache": bool,
}
WANTED = {
    str: "a string",
    list: "a list of strings",
    int: "a whole number of at least 1",
    bool: "true or false",
}


class Chosen(NamedTuple):
    """What to serve, where, and with which techniques, as texts. None: derived."""

    model: str
    on: str
    use: tuple[str, ...]
    max_seqs: int | None = None
    threads: int | None = None
    tp: int | None = None
    pp: int | None = None
    depth: int | None = None
    max_len: int | None = None
    kv_bytes: int | None = None
    max_waiting: int | None = None
    prefix_cache: bool | None = None

    def plan(self, **settings: Any) -> Plan:
        """What these come to, and further settings of a plan; None leaves one as it is."""
        from lightwork.serve.plan import Plan

        told = self._asdict() | {name: value for name, value in settings.items() if value is not None}
        return Plan(**{name: value for name, value in told.items() if value is not None})


def choose(model: str, on: str | None, use: tuple[str, ...], default_on: str) -> Chosen:
    """Model, place and techniques of a command line, from a plan file where MODEL ends in .toml.

    Raises SpecError for a file or a technique that cannot be understood, before anything is loaded.
    """
    plan: dict[str, Any] = _read(Path(model)) if model.endswith(".toml") else {"model": model}
    told = {
        "model": plan["model"],
        "on": on or plan.get("on", default_on),
        "use": use or tuple(plan.get("use", ())),
    }
    chosen = Chosen(**plan | told)
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
        if not _fits(key, value):
            raise SpecError(f"{key} in {file.name} is {str(value)[:40]!r}", expected=WANTED[KEYS[key]])
    if "model" not in plan:
        raise SpecError(f"{file.name} names no model", expected="model", fix='model = "tiny:llama"')
    return plan


def _fits(key: str, value: Any) -> bool:
    if KEYS[key] is int:  # a bool is an int to Python
        return type(value) is int and value >= 1
    return isinstance(value, KEYS[key]) and (
        not isinstance(value, list) or all(isinstance(v, str) for v in value)
    )
