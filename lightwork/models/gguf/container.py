"""The container of GGUF: a header of typed metadata, a table of tensors, and their data, aligned.

Everything is little-endian. A string is its length (8 bytes) and UTF-8. Counts and lengths of a damaged file
can be anything, so each is compared with the bytes that are left before memory is taken for it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import inf, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import CheckpointError
from lightwork.models.gguf.blocks import FORMATS, TYPE_NAMES, Format

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
MAX_DIMS = 4
MAX_INTEGER = 2**31
SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
STRING, ARRAY = 8, 9
_MIN_ENTRY_BYTES = 13
"""Of metadata: the length of a key, a type, one byte of value. An entry of the tensor table is longer."""

Value = bool | int | float | str | list[str] | NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a tensor lies. shape: outermost dimension first, the reverse of the file. start: byte."""

    format: Format
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) // self.format.block * self.format.block_bytes


class Container:
    """Metadata and tensors of a file, which stays memory-mapped. Raises CheckpointError if it is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Copy on write: torch wants arrays it may write to; nothing reaches the file.
            self.data: NDArray[np.uint8] = np.memmap(path, np.uint8, mode="c")
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise self._damaged(str(error)) from error
        cursor = _Cursor(self)
        num_tensors, num_values = cursor.start()
        self.metadata = self._read_metadata(cursor, num_values)
        self.tensors = self._read_table(cursor, num_tensors)

    def bytes_of(self, place: Place) -> NDArray[np.uint8]:
        return self.data[place.start : place.start + place.nbytes]

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number from 0 to 2**31. Raises CheckpointError if it is missing or anything else."""
        value = self.metadata.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_INTEGER:
            raise self._damaged(f"{key} is {self._shown(value)}")
        return value

    def real(self, key: str, default: float) -> float:
        """A positive, finite number. Raises CheckpointError for anything else."""
        value = self.metadata.get(key, default)
        if not isinstance(value, int | float) or not 0 < value < inf:
            raise self._damaged(f"{key} is {self._shown(value)}")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        value = self.metadata.get(key, default)
        if not isinstance(value, str):
            raise self._damaged(f"{key} is {self._shown(value)}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            raise self._damaged(f"{key} is {self._shown(value)}")
        return value

    def texts(self, key: str) -> list[str]:
        value = self.metadata.get(key)
        if not isinstance(value, list):
            raise self._damaged(f"{key} is {self._shown(value)}")
        return value

    def numbers(self, key: str, count: int) -> NDArray[Any]:
        """An array of so many numbers."""
        value = self.metadata.get(key)
        if not isinstance(value, np.ndarray) or len(value) != count:
            raise self._damaged(f"{key} is not {count} numbers")
        return value

    def _shown(self, value: Value | None) -> str:
        return "missing" if value is None else repr(value)[:60]

    def _read_metadata(self, cursor: _Cursor, count: int) -> dict[str, Value]:
        metadata: dict[str, Value] = {}
        for _ in range(count):
            key = cursor.string()
            metadata[key] = cursor.value(cursor.integer(4))
        return metadata

    def _read_table(self, cursor: _Cursor, count: int) -> dict[str, Place]:
        raw = [cursor.tensor() for _ in range(count)]
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {alignment!r}")
        begin = -(-cursor.at // alignment) * alignment
        tensors: dict[str, Place] = {}
        for name, shape, kind, offset in raw:
            place = Place(format=self._format(name, kind), shape=shape, start=begin + offset)
            if shape[-1] % place.format.block:
                raise self._damaged(f"a row of {name} has {shape[-1]} values, no multiple of its blocks")
            if offset % alignment or name in tensors:
                raise self._damaged(f"the place of {name} is odd or taken twice")
            if place.start + place.nbytes > len(self.data):
                raise self._damaged(f"{name} reaches past the end of the file")
            tensors[name] = place
        return tensors

    def _format(self, name: str, kind: int) -> Format:
        if kind in FORMATS:
            return FORMATS[kind]
        if kind not in TYPE_NAMES:
            raise self._damaged(f"{name} has the type {kind}")
        raise CheckpointError(
            f"{name} of {self.path} is stored as {TYPE_NAMES[kind]}, which is not supported",
            expected=", ".join(f.name for f in FORMATS.values()),
            fix="a file of the same model in one of these types, such as Q4_K_M or Q8_0",
        )

    def _damaged(self, why: str) -> CheckpointError:
        return damaged(self.path, why)


def damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is no whole GGUF file: {why}", expected="a GGUF file of version 2 or 3", fix="copy it again"
    )


class _Cursor:
    """Reads a file from its front and never past its end."""

    def __init__(self, container: Container) -> None:
        self._path = container.path
        self._bytes = container.data.data
        self.at = 0

    def start(self) -> tuple[int, int]:
        """Magic and version; returns the counts of tensors and of metadata."""
        if self._take(4) != MAGIC:
            raise damaged(self._path, "it does not begin with GGUF")
        version = self.integer(4)
        if version not in VERSIONS:
            raise damaged(self._path, f"its version is {version}")
        num_tensors, num_values = self.integer(8), self.integer(8)
        self._need((num_tensors + num_values) * _MIN_ENTRY_BYTES)
        return num_tensors, num_values

    def integer(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def string(self) -> str:
        try:
            return str(self._take(self.integer(8)), "utf-8")
        except UnicodeDecodeError as error:
            raise damaged(self._path, f"text that is not UTF-8 before byte {self.at}") from error

    def value(self, kind: int) -> Value:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self._array()
        number = self._numbers(kind, 1)[0]
        # The decimal that was rounded to float32, 1e-05, and not what it was rounded to.
        value: Value = float(str(number)) if number.dtype == np.float32 else number.item()
        return value

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type, offset."""
        name, dims = self.string(), self.integer(4)
        if not 1 <= dims <= MAX_DIMS:
            raise damaged(self._path, f"{name} has {dims} dimensions")
        shape = tuple(reversed(struct.unpack(f"<{dims}Q", self._take(8 * dims))))
        if 0 in shape:
            raise damaged(self._path, f"{name} has the shape {shape}")
        return name, shape, self.integer(4), self.integer(8)

    def _array(self) -> Value:
        kind, count = self.integer(4), self.integer(8)
        if kind != STRING:
            return self._numbers(kind, count)
        self._need(8 * count)
        return [self.string() for _ in range(count)]

    def _numbers(self, kind: int, count: int) -> NDArray[Any]:
        dtype = SCALARS.get(kind)
        if dtype is None:
            raise damaged(self._path, f"a value of type {kind} before byte {self.at}")
        return np.frombuffer(self._take(count * dtype.itemsize), dtype)

    def _take(self, size: int) -> memoryview:
        self._need(size)
        self.at += size
        return self._bytes[self.at - size : self.at]

    def _need(self, size: int) -> None:
        if size > len(self._bytes) - self.at:
            raise damaged(self._path, f"{size} bytes from byte {self.at} on are not there")
