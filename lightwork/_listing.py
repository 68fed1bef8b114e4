"""The folder is the registry: kinds, and the headers of their files, read without importing any of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from lightwork.errors import MissingExtraError, SpecError

LABELS = ("Paper", "Idea", "Shapes", "Cost", "Claims")

_DOCSTRING = re.compile(r'\A(?:\s*#[^\n]*\n)*\s*[rR]?"""(.*?)"""', re.DOTALL)
_LABEL = re.compile(r"(Paper|Idea|Shapes|Cost|Claims|Differs):\s*(.*)")
_PROTOCOL = re.compile(r"^class (\w+)\((?:\w+\.)?Protocol\b", re.MULTILINE)
_EXTRAS = {"torch": "torch", "numba": "cpu", "llvmlite": "cpu", "fastapi": "serve", "httpx": "serve"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Technique:
    """One technique as its file describes it. Absent header fields are empty."""

    name: str
    kind: str
    module: str
    file: str
    summary: str = ""
    paper: str = ""
    idea: str = ""
    shapes: str = ""
    cost: str = ""
    claims: str = ""
    differs: str = ""

    def missing(self) -> tuple[str, ...]:
        """The header labels this file lacks."""
        return tuple(label for label in LABELS if not getattr(self, label.lower()))

    def load(self) -> type:
        """Import the technique's class. Raises MissingExtraError if a library it needs is not installed."""
        try:
            found = getattr(import_module(self.module), self.name, None)
        except ModuleNotFoundError as error:
            root = (error.name or "").partition(".")[0]
            if root in _EXTRAS:
                raise MissingExtraError(root, _EXTRAS[root]) from error
            raise
        if not isinstance(found, type) or not is_dataclass(found):
            raise SpecError(
                f"{self.module} is not a technique", expected=f"a frozen dataclass {self.name} in it"
            )
        return found


@lru_cache
def kinds(package: str = "lightwork") -> dict[str, str]:
    """Kind to the package that holds its techniques: {"scheduler": "lightwork.serve.schedulers", ...}."""
    spec = find_spec(package)
    found: dict[str, str] = {}
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for init in sorted(Path(place).glob("*/*/__init__.py")):
            folder = init.parent
            for protocol in _PROTOCOL.findall(init.read_text(encoding="utf-8")):
                kind = snake(protocol)
                if folder.name in (kind, kind + "s", kind.removesuffix("y") + "ies"):
                    found[kind] = f"{package}.{folder.parent.name}.{folder.name}"
    return found


@lru_cache
def listing(package: str = "lightwork") -> tuple[Technique, ...]:
    """Every technique, sorted by kind and name. Nothing is imported but the top of the package."""
    root = find_spec(package)
    place = Path((root.submodule_search_locations or [""])[0]) if root else Path()
    found = [
        read_header(file, kind, f"{module}.{file.stem}")
        for kind, module in kinds(package).items()
        for file in place.joinpath(*module.split(".")[1:]).glob("*.py")
        if not file.name.startswith("_")
    ]
    if package == "lightwork":
        found.extend(_installed())
    described = [t for t in found if t.missing() != LABELS]  # a kind without headers holds backends
    return tuple(sorted(described, key=lambda t: (t.kind, t.name)))


def read_header(file: Path, kind: str, module: str, name: str = "") -> Technique:
    """Read a technique's name and header from its file's text."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    plain = file.stem.replace("_", "")
    classes = re.findall(r"^class (\w+)", text, re.MULTILINE)
    name = name or next((c for c in classes if c.lower() == plain), file.stem.title().replace("_", ""))
    match = _DOCSTRING.match(text)
    lines = match.group(1).strip().splitlines() if match else []
    header: dict[str, str] = {}
    label = ""
    for line in lines[1:]:
        if start := _LABEL.match(line):
            label = start.group(1).lower()
            header[label] = start.group(2).strip()
        elif label and line.startswith(" "):
            header[label] = f"{header[label]} {line.strip()}".strip()
        else:
            label = ""
    summary = lines[0] if lines else ""
    return Technique(name=name, kind=kind, module=module, file=str(file), summary=summary, **header)


def _installed() -> Iterable[Technique]:
    from importlib.metadata import entry_points

    for point in entry_points(group="lightwork.techniques"):
        kind, _, name = point.name.rpartition(".")
        top, *rest = point.module.split(".")
        spec = find_spec(top)
        place = Path((spec.submodule_search_locations or [spec.origin or ""])[0]) if spec else Path()
        file = place.joinpath(*rest).with_suffix(".py") if rest else place
        yield read_header(file, kind, point.module, name)


def find(name: str, package: str = "lightwork") -> Technique:
    """The technique of this name. Raises SpecError that suggests the nearest."""
    known = {t.name: t for t in listing(package)}
    if name in known:
        return known[name]
    near = nearest(name, known)
    raise SpecError(
        f"no technique is called {short(name)}",
        expected=near or f"one of {', '.join(known) or 'none installed'}",
        fix=near or "lightwork techniques",
    )


def nearest(name: str, names: Iterable[str]) -> str:
    """The name most like this one, or an empty string."""
    from difflib import get_close_matches

    lower = {n.lower(): n for n in names}
    close = get_close_matches(name.lower()[:64], lower, n=1, cutoff=0.5)
    return lower[close[0]] if close else ""


def kind_of(technique: object, package: str = "lightwork") -> str:
    """The kind of a technique object; empty if it is none.

    By the folder its class lives in, or its entry point. One that was written on the spot, in a notebook or a
    script, is of the kind whose Protocol's methods it has, the one with most of them.
    """
    cls = type(technique)
    known = {(t.module, t.name): t.kind for t in listing(package)}
    kind = known.get((cls.__module__, cls.__name__))
    if kind is None:
        kind = _kind_by_methods(cls, package) if is_dataclass(cls) else ""
    return kind


def _kind_by_methods(cls: type, package: str) -> str:
    found = {}
    for kind, module in kinds(package).items():
        in_it = vars(import_module(module))
        protocol = next(v for n, v in in_it.items() if snake(n) == kind and isinstance(v, type))
        methods = [n for n, v in vars(protocol).items() if callable(v) and not n.startswith("_")]
        if methods and all(callable(getattr(cls, name, None)) for name in methods):
            found[kind] = len(methods)
    return max(found, key=found.__getitem__, default="")


def short(value: object, quote: bool = True) -> str:
    text = repr(value) if quote else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
