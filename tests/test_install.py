"""What a new machine installs is what was tested."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = [
    line
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def name_of(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found.group()).lower()


def test_every_pin_is_one_exact_public_version():
    assert [pin for pin in PINS if not re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*", pin)] == []
    assert len({name_of(pin) for pin in PINS}) == len(PINS)


def test_every_dependency_is_pinned():
    wanted = list(PROJECT["dependencies"])
    for extra in PROJECT["optional-dependencies"].values():
        wanted += extra
    pinned = {name_of(pin) for pin in PINS}
    assert {name_of(w) for w in wanted} - pinned - {PROJECT["name"]} == set()


def test_every_dependency_has_a_reason():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = re.search(r"^dependencies = .*?^all = ", text, re.MULTILINE | re.DOTALL)
    assert lists is not None
    listed = [line for line in lists.group().splitlines() if re.match(r'\s+"|\w+ = \["', line)]
    assert [line for line in listed if "#" not in line] == []


@pytest.mark.parametrize("target", ["demo", "test", "check", "check-slow", "claims", "bench", "docs"])
def test_every_make_target_can_be_planned(target: str):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ci_runs_the_readmes_lines():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make install test" in script
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)
    install = '-c constraints.txt -e ".[all,dev]"'
    assert install in (ROOT / "README.md").read_text(encoding="utf-8")
    assert install in (ROOT / "Makefile").read_text(encoding="utf-8")
