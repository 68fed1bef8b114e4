"""A plan file says the same as a command line, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightwork.cli._plan_file import MAX_BYTES, choose
from lightwork.errors import SpecError


@pytest.fixture
def plan(tmp_path: Path):
    def write(text: str) -> str:
        file = tmp_path / "plan.toml"
        file.write_text(text)
        return str(file)

    return write


def test_without_a_file_the_command_line_is_all():
    assert choose("tiny:llama", None, (), "cpu")[:3] == ("tiny:llama", "cpu", ())
    assert choose("tiny:llama", "cuda:0", ("Ngram(k=4)",), "cpu")[:3] == (
        "tiny:llama",
        "cuda:0",
        ("Ngram(k=4)",),
    )


def test_the_command_line_replaces_what_the_file_says(plan):
    file = plan('model = "tiny:llama"\non = "sim:h100"\nuse = ["Sarathi", "Ngram"]\n')
    assert choose(file, None, (), "cpu")[:3] == ("tiny:llama", "sim:h100", ("Sarathi", "Ngram"))
    assert choose(file, "cpu", ("Ngram",), "cpu")[:3] == ("tiny:llama", "cpu", ("Ngram",))


def test_what_was_tuned_is_read(plan):
    chosen = choose(plan('model = "tiny:llama"\nmax_seqs = 16\nthreads = 1\n'), None, (), "cpu")
    assert (chosen.max_seqs, chosen.threads) == (16, 1)


def test_ranks_and_stages_are_read_and_replaced(plan):
    chosen = choose(plan('model = "tiny:llama"\ntp = 2\npp = 4\n'), None, (), "cpu")
    assert (chosen.plan().tp, chosen.plan().pp) == (2, 4)
    assert (chosen.plan(tp=None, pp=3).tp, chosen.plan(pp=3).pp) == (2, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('model = "m"\nthreads = 0', "a whole number of at least 1"),
        ('model = "m"\nmax_seqs = true', "a whole number of at least 1"),
        ("", "names no model"),
        ("model = 3", "model in plan.toml is '3'"),
        ('model = "m"\nuse = "Sarathi"', "a list of strings"),
        ('model = "m"\nuse = [3]', "a list of strings"),
        ('model = "m"\nusee = []', "unknown key 'usee'\n  expected: use"),
        ('model = "m"\nuse = ["Sarathi", "PrefillFirst"]', "both of kind scheduler"),
        ('model = "m"\nuse = ["Sarahti"]', "expected: Sarathi"),
        ("model = ", "is not TOML"),
        ("[" * 5000, "is not TOML"),
        ("#" * (MAX_BYTES + 1), "at most"),
    ],
)
def test_what_a_plan_may_not_say_is_refused(plan, text, said):
    with pytest.raises(SpecError, match=said):
        choose(plan(text), None, (), "cpu")


def test_a_file_that_is_not_there():
    with pytest.raises(SpecError, match="cannot be read"):
        choose("absent.toml", None, (), "cpu")
