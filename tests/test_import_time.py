"""CPU-time budgets of starting up, over bare Python, in child processes. The only test that measures time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from resource import RUSAGE_CHILDREN, getrusage

import pytest

ROUNDS = 7
BUDGETS_MS = {"import lightwork": 30, "lightwork --help": 120}
COMMANDS = {
    "bare": ["-c", "pass"],
    "import lightwork": ["-c", "import lightwork"],
    "lightwork --help": ["-m", "lightwork", "--help"],
}
HEAVY = ("torch", "numpy", "rich", "fastapi", "httpx", "tokenizers")


def cpu_ms(arguments: Sequence[str]) -> float:
    before = getrusage(RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = getrusage(RUSAGE_CHILDREN)
    return 1e3 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


@pytest.fixture(scope="module")
def best_ms() -> dict[str, float]:
    """The least CPU time of each command, taken in turns so that load meets all alike."""
    rounds = [{name: cpu_ms(arguments) for name, arguments in COMMANDS.items()} for _ in range(ROUNDS)]
    return {name: min(r[name] for r in rounds) for name in COMMANDS}


@pytest.mark.parametrize("name", BUDGETS_MS)
def test_start_up_stays_within_its_budget(best_ms: dict[str, float], name: str):
    assert best_ms[name] - best_ms["bare"] <= BUDGETS_MS[name], best_ms


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_loads_no_heavy_library(argument: str):
    script = (
        "import sys; from lightwork.cli import main; main([sys.argv[1]]);"
        f"loaded = [m for m in {HEAVY!r} if m in sys.modules]; assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", script, argument], check=True, stdout=subprocess.DEVNULL)
