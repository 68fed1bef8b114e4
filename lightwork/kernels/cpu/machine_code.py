"""Machine code, compiled once for a processor and a version of these files, then loaded from disk.

Compilers take a second to start and a hundred megabytes; what they made takes neither. Object files are
linked here where the processor is an x86-64, whose code needs three kinds of relocation; elsewhere LLVM does.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from lightwork.cluster.processor import features, processor_name
from lightwork.errors import InvariantError, LightworkError
from lightwork.home import home, keep

ENTRY = "entry"
"""The function of an object file that is called."""


def load(name: str, compile_: Callable[[], bytes]) -> int:
    """The address of the entry of the object file of this name, valid for the process.

    compile_: makes the object file if none is kept. Warns where it cannot be kept.
    """
    kept = home() / "code" / _version() / f"{name}.o"
    try:
        file = kept.read_bytes()
    except OSError:
        file = compile_()
        try:
            keep(kept, lambda part: part.write_bytes(file))
        except OSError as error:
            warnings.warn(
                f"compiled code cannot be kept in {kept.parent}: {error.strerror}. Every start will compile; "
                "set LIGHTWORK_HOME to a folder with room",
                stacklevel=2,
            )
    if platform.machine() == "x86_64":
        return link(file)
    from lightwork.kernels.cpu import assemble

    return assemble.link(file)


@cache
def _version() -> str:
    """Names all that machine code depends on: the files of this folder, the compilers, the processor."""
    digest = sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    for part in (version("numba"), version("llvmlite"), processor_name(), *features()):
        digest.update(part.encode())
    return digest.hexdigest()[:32]


# -- linking, by the System V ABI for x86-64 ("ELF" and "AMD64 supplement")

_SECTION, _SYMBOL, _RELOCATION = struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ"), struct.Struct("<QQq")
_SYMBOLS, _RELOCATIONS, _NO_BITS = 2, 4, 8
_IN_MEMORY = 2
_PC32, _PLT32, _GOT = 2, 4, (9, 41, 42)
_JUMP = bytes.fromhex("ff2500000000")
"""jmp to the address that follows; as an address alone it is an entry of the global offset table."""
_STUB = 16

_in_use: list[mmap.mmap] = []


class _Section(NamedTuple):
    """The header of a section."""

    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


class _ObjectFile:
    """What an object file holds: sections, symbols, and the places that lack an address."""

    def __init__(self, file: bytes) -> None:
        self._file = file
        table, count = struct.unpack_from("<Q", file, 40)[0], struct.unpack_from("<H", file, 60)[0]
        headers = (_SECTION.unpack_from(file, table + _SECTION.size * i) for i in range(count))
        self.sections = [_Section(*header) for header in headers]
        self._symbols = next(section for section in self.sections if section.type == _SYMBOLS)
        self.num_symbols = self._symbols.size // _SYMBOL.size

    def bytes_of(self, section: _Section) -> bytes:
        return self._file[section.offset : section.offset + section.size]

    def symbol(self, number: int) -> tuple[str, int, int]:
        """Name, section (0: it is not in this file) and place in it."""
        at = self._symbols.offset + _SYMBOL.size * number
        name, _, _, section, value, _ = _SYMBOL.unpack_from(self._file, at)
        first = self.sections[self._symbols.link].offset + name
        return self._file[first : self._file.index(b"\0", first)].decode(), section, value

    def relocations(self) -> Iterator[tuple[int, int, int, int, int]]:
        """Section, place in it, symbol, kind, and what is added to the symbol's address."""
        for section in self.sections:
            if section.type == _RELOCATIONS:
                for at, info, addend in _RELOCATION.iter_unpack(self.bytes_of(section)):
                    yield section.info, at, info >> 32, info & 0xFFFFFFFF, addend


def _in_place(code: _ObjectFile) -> tuple[mmap.mmap, dict[int, int], int]:
    """Memory with the sections and room for stubs, where each section is, and where the stubs begin."""
    starts, end = {}, 0
    for i, section in enumerate(code.sections):
        if section.flags & _IN_MEMORY:
            starts[i] = end = -(-end // max(1, section.alignment)) * max(1, section.alignment)
            end += section.size
    memory = mmap.mmap(-1, end + _STUB * code.num_symbols, flags=mmap.MAP_PRIVATE)
    for i, start in starts.items():
        if code.sections[i].type != _NO_BITS:
            memory[start : start + code.sections[i].size] = code.bytes_of(code.sections[i])
    return memory, starts, end


def link(file: bytes) -> int:
    """Link an x86-64 object file into executable memory; the address of its entry.

    Raises InvariantError for a relocation that is not expected, AttributeError for an unknown function,
    LightworkError if this process may not make memory executable.
    """
    code, library = _ObjectFile(file), ctypes.CDLL(None)
    memory, starts, end = _in_place(code)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))

    def stub(number: int) -> int:
        """A jump to a symbol wherever it is; its last bytes are the address."""
        name, section, value = code.symbol(number)
        known = (
            base + starts[section] + value if section else ctypes.cast(library[name], ctypes.c_void_p).value
        )
        at = end + _STUB * number
        memory[at : at + len(_JUMP) + 8] = _JUMP + struct.pack("<Q", known)
        return at

    for within, at, number, kind, addend in code.relocations():
        if within not in starts:
            continue
        _, section_number, value = code.symbol(number)
        if kind in _GOT:
            to = stub(number) + len(_JUMP)
        elif kind in (_PC32, _PLT32):
            to = starts[section_number] + value if section_number else stub(number)
        else:
            raise InvariantError(f"relocation {kind}", expected="code that may lie anywhere")
        at += starts[within]
        struct.pack_into("<i", memory, at, to + addend - at)
    _in_use.append(memory)
    if library.mprotect(ctypes.c_void_p(base), len(memory), mmap.PROT_READ | mmap.PROT_EXEC):
        raise LightworkError(
            "this process may not run code that it has loaded",
            expected="memory that may become executable",
            fix="let the system's security policy allow it (SELinux: execmem)",
        )
    symbols = (code.symbol(number) for number in range(code.num_symbols))
    return base + next(
        starts[section] + value for name, section, value in symbols if name == ENTRY and section
    )
