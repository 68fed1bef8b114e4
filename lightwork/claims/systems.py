"""The seventy-eight systems of the mission, in its order, from the table `systems.json` beside this file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lightwork._listing import nearest
from lightwork.errors import SpecError


@dataclass(frozen=True, slots=True)
class System:
    """One system. name: of its claim file and on the command line. title: as its authors call it."""

    number: int
    name: str
    title: str
    package: str
    counts_when: str


_TABLE = json.loads((Path(__file__).parent / "systems.json").read_text(encoding="utf-8"))
SYSTEMS = tuple(System(*row) for row in _TABLE)
_BY_NAME = {s.name: s for s in SYSTEMS} | {s.title.lower(): s for s in SYSTEMS}


def system_named(name: str) -> System:
    """The system of this name or title. Raises SpecError that suggests the nearest."""
    if found := _BY_NAME.get(name.lower()):
        return found
    near = nearest(name, _BY_NAME)
    close = _BY_NAME[near].name if near else ""
    fix = f"lightwork claims {close}".strip()
    raise SpecError(f"no system is called {name[:60]!r}", expected=close or "one of the 78 names", fix=fix)
