"""Where lightwork keeps what it makes once and reads again at later starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def home() -> Path:
    """The folder of files kept between runs: LIGHTWORK_HOME, or one in the user's cache."""
    return Path(os.environ.get("LIGHTWORK_HOME") or Path.home() / ".cache" / "lightwork")


def keep(place: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside its place, then rename it: a file of this name is always whole.

    What a killed process left half written is removed. Raises OSError, and whatever write does.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in place.parent.glob(f"{place.stem}.*.part"):
        if not _is_running(int(left.suffixes[-2][1:])):
            left.unlink(missing_ok=True)
    part = place.with_suffix(f".{os.getpid()}.part")
    try:
        write(part)
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
