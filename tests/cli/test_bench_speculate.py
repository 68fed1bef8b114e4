"""`lightwork bench speculate`: proposers beside plain decoding, and the record of other programs' guesses."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("numba")

from lightwork.claims.peers import Row, load
from lightwork.claims.speculate import BAR, RECORD, TASKS
from lightwork.cli import main


def test_json_has_plain_decoding_and_the_proposers_asked_for(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "speculate", "Ngram(k=2) + Copy(k=3)", "--rounds", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    most = {"plain": 0, "Ngram(k=2)": 2, "Copy(k=3)": 3}
    assert [(row["task"], row["use"]) for row in said["ours"]] == [
        (task, use) for task in TASKS for use in most
    ]
    for row in said["ours"]:
        assert row["rows_per_step"] <= most[row["use"]]
        assert row["tokens_per_step"] <= 1 + row["rows_per_step"]
    assert [Row(**record) for record in said["peers"]] == load(RECORD)


def test_the_table_has_a_line_for_each_proposer_and_says_how_to_measure_peers(
    capsys: pytest.CaptureFixture[str],
):
    assert main(["bench", "speculate", "Ngram(k=2)", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("Ngram(k=2)") for line in lines) == len(TASKS)
    best = next(line for line in lines if line.startswith("best on copy: "))
    assert f"x plain decoding, bar {BAR}" in best
    assert "benchmarks/speculate_peers.py" in lines[-1]


def test_what_guesses_no_tokens_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "speculate", "Sarathi(chunk=256)"]) == 2
    assert "Sarathi(chunk=256) guesses no tokens" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--on", "cpu"], ["--model", "tiny:draft"], ["--seed", "1"]])
def test_what_it_is_asked_is_fixed(option: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "speculate", *option]) == 2
    assert f"{option[0]} is of a comparison" in capsys.readouterr().err
