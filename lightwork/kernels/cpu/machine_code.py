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
from lightwork.errors import InvariantError
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


def link(file: bytes) -> int:
    """Link an x86-64 object file into executable memory; the address of its entry.

    Raises InvariantError for a relocation that is not expected, AttributeError for an unknown function.
    """
    table, count = struct.unpack_from("<Q", file, 40)[0], struct.unpack_from("<H", file, 60)[0]
    sections = [_Section(*_SECTION.unpack_from(file, table + _SECTION.size * i)) for i in range(count)]
    starts, end = {}, 0
    for i, section in enumerate(sections):
        if section.flags & _IN_MEMORY:
            starts[i] = end = -(-end // section.alignment) * section.alignment
            end += section.size
    symbols = next(section for section in sections if section.type == _SYMBOLS)
    stubs: dict[int, int] = {}
    memory = mmap.mmap(-1, end + _STUB * (symbols.size // _SYMBOL.size), flags=mmap.MAP_PRIVATE)
    for i, start in starts.items():
        if sections[i].type != _NO_BITS:
            memory[start : start + sections[i].size] = _bytes(file, sections[i])
    library = ctypes.CDLL(None)

    def symbol(number: int) -> tuple[str, int, int]:
        name, _, _, section, value, _ = _SYMBOL.unpack_from(file, symbols.offset + _SYMBOL.size * number)
        first = sections[symbols.link].offset + name
        return file[first : file.index(b"\0", first)].decode(), section, value

    def target(number: int) -> int:
        name, section, value = symbol(number)
        if section:
            return starts[section] + value
        if number not in stubs:
            stubs[number] = end + _STUB * len(stubs)
            address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
            memory[stubs[number] : stubs[number] + 14] = _JUMP + struct.pack("<Q", address)
        return stubs[number]

    for section_number, (at, number, kind, addend) in _relocations(file, sections):
        if section_number in starts:
            if kind not in (_PC32, _PLT32, *_GOT) or (kind in _GOT and symbol(number)[1]):
                raise InvariantError(f"relocation {kind}", expected="code that may lie anywhere")
            at += starts[section_number]
            to = target(number) + (len(_JUMP) if kind in _GOT else 0)
            struct.pack_into("<i", memory, at, to + addend - at)
    _in_use.append(memory)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if library.mprotect(ctypes.c_void_p(base), len(memory), mmap.PROT_READ | mmap.PROT_EXEC):
        raise MemoryError("this process may not run code that it has loaded")
    numbers = range(symbols.size // _SYMBOL.size)
    return base + next(target(n) for n in numbers if symbol(n)[0] == ENTRY and symbol(n)[1])


def _bytes(file: bytes, section: _Section) -> bytes:
    return file[section.offset : section.offset + section.size]


def _relocations(file: bytes, sections: list[_Section]) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """(section, (offset in it, symbol, kind, addend))."""
    for section in sections:
        if section.type == _RELOCATIONS:
            for at, info, addend in _RELOCATION.iter_unpack(_bytes(file, section)):
                yield section.info, (at, info >> 32, info & 0xFFFFFFFF, addend)
