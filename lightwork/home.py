"""Where lightwork keeps what it makes once and reads again at later starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from lightwork.errors import LightworkError


def home() -> Path:
    """The folder of files kept between runs: LIGHTWORK_HOME, or one in the user's cache."""
    return Path(os.environ.get("LIGHTWORK_HOME") or Path.home() / ".cache" / "lightwork")


def keep(place: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside its place, then rename it: a file of this name is always whole, also
    after a power cut.

    What a killed process left half written is removed. What is no file (a device, a pipe) is written to as it
    is. Raises OSError, and whatever write does.
    """
    if place.exists() and not place.is_file():
        write(place)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in place.parent.glob(f"{place.stem}.*.part"):
        pid = left.suffixes[-2][1:]
        if pid.isdecimal() and not _is_running(int(pid)):
            left.unlink(missing_ok=True)
    part = place.with_suffix(f".{os.getpid()}.part")
    try:
        write(part)
        _to_disk(part)
        part.replace(place)
        _to_disk(place.parent)
    finally:
        part.unlink(missing_ok=True)


def save(place: Path, write: Callable[[Path], object]) -> None:
    """`keep`, for a file that somebody asked for: what was there stays whole until it is replaced.

    Raises LightworkError that names it if there is no room, or no way to write.
    """
    try:
        keep(place.resolve(), write)
    except OSError as error:
        raise LightworkError(
            f"{place} cannot be written: {error.strerror or error}",
            expected="a folder that may be written to, with room",
            fix="make room there, or name another place",
        ) from error


def _to_disk(place: Path) -> None:
    """Whatever the system still holds of a file, or of the names in a folder."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
