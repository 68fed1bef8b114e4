"""The docs run, and say what the code says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from lightwork.techniques import listing

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```", re.MULTILINE | re.DOTALL)
RUNNABLE = ("sh", "python")
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def blocks(how: str) -> list:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in BLOCK.finditer(text):
            if block[1] in RUNNABLE and block[2] == how:
                line = text[: block.start()].count("\n") + 1
                found.append(pytest.param(block[1], block[3], id=f"{page.name}:{line}"))
    return found


def run(language: str, code: str, folder: Path) -> None:
    command = ["bash", "-euc", code] if language == "sh" else [sys.executable, "-W", "error", "-c", code]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("language", "code"), blocks("run"))
def test_a_block_marked_run_runs(language: str, code: str, tmp_path: Path):
    run(language, code, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("language", "code"), blocks("slow"))
def test_a_block_marked_slow_runs(language: str, code: str, tmp_path: Path):
    run(language, code, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_block_of_code_says_whether_it_is_run(page: Path):
    marks = [b[2] for b in BLOCK.finditer(page.read_text(encoding="utf-8")) if b[1] in RUNNABLE]
    assert set(marks) <= {"run", "slow", "skip"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_leads_somewhere(page: Path):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_docs_are_what_the_code_says(generate: ModuleType):
    text = generate.README.read_text(encoding="utf-8")
    assert text == generate.readme(text), "run `make docs`"
    assert generate.REFERENCE.read_text(encoding="utf-8") == generate.reference(), "run `make docs`"


def test_every_technique_has_a_page_with_its_claims(generate: ModuleType):
    pages = dict(generate.pages())
    own = [t for t in listing() if ROOT in Path(t.file).parents]
    assert {f"techniques/{t.name}.md" for t in own} < pages.keys()
    for t in own:
        assert t.idea in pages[f"techniques/{t.name}.md"]
    assert "over prefill-first" in pages["techniques/Sarathi.md"]


def test_the_site_is_built_without_a_warning_or_a_foreign_host(tmp_path: Path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img)[^>]*(?:src|href)=\"?(https?://[^\" >]+)", page.read_text("utf-8")
        )
        assert not [url for url in loaded if "canonical" not in url], page
        assert "```" not in page.read_text("utf-8"), page
    assert "Sarathi-Serve" in (site / "techniques" / "Sarathi.html").read_text("utf-8")
