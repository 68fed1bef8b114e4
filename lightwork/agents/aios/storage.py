"""Files of agents, with versions: what is written is never lost until it is deleted.

A version is a file of its own, written beside its place and renamed: after a crash a file has the versions
that were whole.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from urllib.parse import quote, unquote

from lightwork.agents.aios.text_index import TextIndex
from lightwork.errors import RangeError, UsageError
from lightwork.home import save

LONGEST_NAME = 200
"""Bytes of a name as it is on disk."""


class Storage:
    """folder: one folder for each owner in it, in that one for each file. May be used from any thread.

    Raises RangeError for names that cannot be kept, UsageError for what is not there, LightworkError where
    nothing can be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = Lock()
        self._indexes: dict[str, TextIndex] = {}

    def write(self, owner: str, name: str, data: bytes) -> int:
        """A new version of a file, the first is 1; returns its number."""
        place = self._place(owner, name)
        with self._lock:
            index = self._index(owner)
            version = max(self._versions(place), default=0) + 1
            save(place / f"{version:08}", lambda part: part.write_bytes(data))
            index.put(name, _text(data))
        return version

    def read(self, owner: str, name: str, version: int = 0) -> bytes:
        """A version of a file, 0: the latest."""
        place = self._place(owner, name)
        with self._lock:
            return (place / f"{self._known(place, owner, name, version):08}").read_bytes()

    def versions(self, owner: str, name: str) -> list[int]:
        """In order; none for a file that is not there."""
        return self._versions(self._place(owner, name))

    def roll_back(self, owner: str, name: str, version: int) -> int:
        """Make an old version the latest. It becomes a new one, so that this can be undone, too."""
        return self.write(owner, name, self.read(owner, name, version))

    def delete(self, owner: str, name: str) -> None:
        """Delete a file with all of its versions, for good."""
        place = self._place(owner, name)
        with self._lock:
            self._known(place, owner, name, 0)
            index = self._index(owner)
            for version in self._versions(place):
                (place / f"{version:08}").unlink()
            place.rmdir()
            index.drop(name)

    def names(self, owner: str) -> list[str]:
        """Of an owner's files, in order."""
        with self._lock:
            return self._names(owner)

    def search(self, owner: str, query: str, most: int = 5) -> list[tuple[str, float]]:
        """Names of the files whose latest texts fit the words of a query best, with their scores."""
        with self._lock:
            return self._index(owner).search(query, most)

    def _names(self, owner: str) -> list[str]:
        folder = self._folder / file_name(owner)
        found = folder.iterdir() if folder.is_dir() else ()
        return sorted(unquote(place.name[1:]) for place in found if self._versions(place))

    def _index(self, owner: str) -> TextIndex:
        if owner not in self._indexes:
            index = self._indexes[owner] = TextIndex()
            for name in self._names(owner):
                place = self._place(owner, name)
                latest = place / f"{max(self._versions(place)):08}"
                index.put(name, _text(latest.read_bytes()))
        return self._indexes[owner]

    def _known(self, place: Path, owner: str, name: str, version: int) -> int:
        versions = self._versions(place)
        if not versions:
            raise UsageError(f"{owner!r} has no file {name!r}", expected="one that was written")
        if version and version not in versions:
            raise UsageError(f"{name!r} has no version {version}", expected=f"1 to {versions[-1]}")
        return version or versions[-1]

    def _place(self, owner: str, name: str) -> Path:
        return self._folder / file_name(owner) / file_name(name)

    def _versions(self, place: Path) -> list[int]:
        found = place.iterdir() if place.is_dir() else ()
        return sorted(int(one.name) for one in found if one.name.isdecimal())


def file_name(name: str) -> str:
    """A name as a name of one file, whatever it contains: never a path, never hidden, never special."""
    safe = "=" + quote(name, safe="", errors="surrogatepass")
    if not name or len(safe) > LONGEST_NAME:
        raise RangeError(f"{name!r:.60} cannot name a file", expected=f"1 to about {LONGEST_NAME} characters")
    return safe


def _text(data: bytes) -> str:
    return data.decode("utf-8", "ignore")
