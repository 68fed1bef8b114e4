"""The committed record of every verdict: claims/results.json, rewritten by `make claims`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightwork import home
from lightwork.claims import State, Verdict
from lightwork.claims.systems import SYSTEMS, System
from lightwork.errors import SpecError

RESULTS = Path(__file__).parent / "results.json"


@dataclass(frozen=True, slots=True)
class Standing:
    """A system and what its claims came to when they were last measured."""

    system: System
    state: State
    verdicts: tuple[dict[str, Any], ...]


def _state(verdicts: Iterable[dict[str, Any]]) -> State:
    """A system is reproduced when every claim on it is."""
    states = [v["state"] for v in verdicts]
    return "not built yet" if not states else "missed" if "missed" in states else "reproduced"


def load(path: Path = RESULTS) -> list[Standing]:
    """All seventy-eight systems with their recorded verdicts."""
    recorded: dict[str, Any] = {}
    if path.is_file():
        try:
            recorded = json.loads(path.read_text(encoding="utf-8"))["systems"]
        except (ValueError, KeyError, TypeError) as error:
            raise SpecError(
                f"{path.name} is not a record of verdicts: {error}",
                expected='{"provenance": ..., "systems": ...}',
                fix="delete it, then make claims",
            ) from error
    standings = []
    for system in SYSTEMS:
        verdicts = tuple(recorded.get(system.name, ()))
        standings.append(Standing(system, _state(verdicts), verdicts))
    return standings


def save(verdicts: dict[str, list[Verdict]], provenance: dict[str, str], path: Path = RESULTS) -> None:
    """Write the record, sorted and without dates, so that equal measurements give an equal file. Systems that
    were not measured keep theirs."""
    recorded = {standing.system.name: standing.verdicts for standing in load(path)}
    recorded |= {name: tuple(v.record() for v in found) for name, found in verdicts.items()}
    systems = {name: recorded[name] for name in sorted(recorded) if recorded[name]}
    text = json.dumps({"provenance": provenance, "systems": systems}, indent=1, ensure_ascii=False)
    home.save(path, lambda part: part.write_text(text + "\n", encoding="utf-8"))


def provenance() -> dict[str, str]:
    """Which code measured, and on what, without dates or names of machines."""
    import platform
    from subprocess import DEVNULL, PIPE, run

    from lightwork import __version__

    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        commit = run(asked, stdout=PIPE, stderr=DEVNULL, text=True, check=False).stdout.strip()
    except OSError:
        commit = ""
    python = platform.python_version()
    return {"lightwork": __version__, "commit": commit, "python": python, "machine": platform.machine()}
