"""The rules of the house that a machine can check, over every file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from lightwork.techniques import kinds, listing

ROOT = Path(__file__).parent.parent
MAX_LINES, MAX_TECHNIQUE_LINES, MAX_FUNCTION_LINES = 500, 250, 50  # columns: ruff, E501
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "base", "core", "manager"}
CLOCK_MODULES = {"time", "sched", "timeit"}
CLOCKS = {
    "asyncio": {"sleep"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
    "threading": {"Timer"},
}
PICKLES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
UNSAFE_LOADS = {"torch": {"load"}, "np": {"load"}, "numpy": {"load"}}
STANDARD = {
    "NO_COLOR",
    "OPENAI_API_KEY",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
}
ENVIRONMENT = {"LIGHTWORK_HOME", "LIGHTWORK_LOG"} | STANDARD
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b")
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|root|home)/\w")
TEXTS = (".py", ".md", ".toml", ".json", ".yaml", ".svg", ".html", "")


@cache
def sources(*folders: str) -> dict[Path, ast.Module]:
    """Every Python file under these folders, parsed."""
    found = sorted(f for folder in folders for f in (ROOT / folder).rglob("*.py"))
    return {f.relative_to(ROOT): ast.parse(f.read_text(encoding="utf-8"), str(f)) for f in found}


def ours() -> dict[Path, ast.Module]:
    return sources("lightwork", "tests", "benchmarks", "docs", "scripts", "examples")


def package() -> dict[Path, ast.Module]:
    return sources("lightwork")


def texts() -> Iterator[tuple[Path, str]]:
    tops = [f for f in ROOT.iterdir() if f.is_file() and f.suffix in TEXTS and f.name != "LICENSE"]
    folders = ("lightwork", "tests", "benchmarks", "docs", "scripts", "examples", ".ci", "changelog.d")
    under = [f for folder in folders for f in (ROOT / folder).rglob("*") if f.is_file() and f.suffix in TEXTS]
    for file in sorted(tops + [f for f in under if "__pycache__" not in f.parts]):
        yield file.relative_to(ROOT), file.read_text(encoding="utf-8")


def names_used(tree: ast.Module, of: dict[str, set[str]]) -> Iterator[tuple[int, str]]:
    """Uses of `module.name`, or imports of name from module, for the modules and names of a table."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr=name) if name in of.get(module, ()):
                yield node.lineno, f"{module}.{name}"
            case ast.ImportFrom(module=str(module), names=imported):
                wrong = [a.name for a in imported if a.name in of.get(module, ())]
                yield from ((node.lineno, f"{module}.{name}") for name in wrong)


def modules_imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name.split(".")[0]) for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.split(".")[0]


def test_files_are_short():
    techniques = {Path(t.file).resolve() for t in listing()}
    offenders = []
    for file in ours():
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        most = MAX_TECHNIQUE_LINES if (ROOT / file).resolve() in techniques else MAX_LINES
        if len(lines) > most:
            offenders.append(f"{file}: {len(lines)} lines, at most {most}")
    assert not offenders, "\n".join(offenders)


def test_functions_are_short():
    offenders = [
        f"{file}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for file, tree in ours().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert not offenders, "\n".join(offenders)


def test_modules_are_named_after_what_they_hold():
    parts = {part: file for file in package() for part in (*file.parts[:-1], file.stem)}
    assert [f for part, f in parts.items() if part.strip("_") in FORBIDDEN_NAMES] == []


def test_every_folder_of_code_is_a_package_that_says_what_lives_there():
    folders = {file.parent for file in package()}
    offenders = []
    for folder in sorted(folders):
        tree = package().get(folder / "__init__.py")
        if tree is None or not ast.get_docstring(tree):
            offenders.append(f"{folder}/__init__.py: missing, or without a docstring")
    assert not offenders, "\n".join(offenders)


def test_only_the_runtime_reads_a_clock():
    offenders = [
        f"{file}:{line}: {name}"
        for file, tree in package().items()
        if file.parts[:2] != ("lightwork", "runtime")
        for line, name in [*modules_imported(tree), *names_used(tree, CLOCKS)]
        if name in CLOCK_MODULES or "." in name
    ]
    assert not offenders, "\n".join(offenders)


def test_tests_do_not_wait():
    waits = {"time": {"sleep"}, "asyncio": {"sleep"}}
    assert [f"{f}:{n}" for f, tree in sources("tests").items() for n, _ in names_used(tree, waits)] == []


def test_nothing_is_pickled():
    offenders = [
        f"{file}:{line}: {name}"
        for file, tree in package().items()
        for line, name in [*modules_imported(tree), *names_used(tree, UNSAFE_LOADS)]
        if name in PICKLES or "." in name
    ]
    assert not offenders, "\n".join(offenders)


def test_pydantic_stays_at_the_edges():
    """Where others' values come in: HTTP, and arguments of tools that models have written."""
    edges = [("lightwork", "serve", "http"), ("lightwork", "web"), ("lightwork", "agents", "signatures.py")]
    offenders = [
        f"{file}:{line}"
        for file, tree in package().items()
        if not any(file.parts[: len(edge)] == edge for edge in edges)
        for line, name in modules_imported(tree)
        if name == "pydantic"
    ]
    assert not offenders, "\n".join(offenders)


def test_no_other_environment_variable_is_read():
    offenders = []
    for file, tree in package().items():
        for node in ast.walk(tree):
            match node:
                case ast.Subscript(value=ast.Attribute(attr="environ"), slice=name, ctx=ast.Load()):
                    pass
                case ast.Call(
                    func=ast.Attribute(value=ast.Attribute(attr="environ"), attr="get"), args=[name, *_]
                ):
                    pass
                case ast.Call(func=ast.Attribute(attr="getenv"), args=[name, *_]):
                    pass
                case _:
                    continue
            if not isinstance(name, ast.Constant) or name.value not in ENVIRONMENT:
                offenders.append(f"{file}:{node.lineno}: {ast.unparse(name)}")
    assert not offenders, "\n".join(offenders)


@pytest.mark.parametrize("technique", listing(), ids=lambda t: t.name)
def test_a_technique_has_a_complete_header(technique):
    assert technique.missing() == ()
    assert technique.summary.endswith(".")


def test_every_public_file_of_a_kind_is_a_technique():
    described = {t.kind for t in listing()}
    listed = {t.module for t in listing()}
    offenders = [
        f"{module}.{file.stem} has no header"
        for kind, module in kinds().items()
        if kind in described
        for file in ROOT.joinpath(*module.split(".")).glob("[!_]*.py")
        if f"{module}.{file.stem}" not in listed
    ]
    assert not offenders, "\n".join(offenders)


def test_nothing_is_left_unfinished_and_no_path_is_of_one_machine():
    offenders = [
        f"{file}: {found.group()}"
        for file, text in texts()
        for pattern in (UNFINISHED, MACHINE_PATH)
        for found in [pattern.search(text)]
        if found
    ]
    assert not offenders, "\n".join(offenders)
