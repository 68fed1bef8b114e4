"""`lightwork simulate`: a game file, a place, and what came of it."""

from __future__ import annotations

import json

import pytest

from lightwork.cli import main

GAME = """
game: numbers
rounds: 3
population:
  total_num: 40
  distributions:
    - name: thinking
      categories:
        - {category_name: all, percentage: 100, attributes: {level: 1}}
"""


@pytest.fixture
def game(tmp_path):
    file = tmp_path / "game.yaml"
    file.write_text(GAME)
    return str(file)


def test_rounds_and_figures_are_printed(game, capsys):
    assert main(["simulate", game, "--place", "sim:2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["round", "answers", "invalid", "mean", "winning"]
    assert lines[1].split() == ["1", "40", "0", "33.333333", "22.222222"]
    assert lines[3].split()[:3] == ["3", "40", "0"]
    assert "simulated: sim:2" in "\n".join(lines)


def test_json_says_the_same_and_agents_are_as_many_as_asked(game, tmp_path, capsys):
    trace = tmp_path / "trace.json"
    assert main(["simulate", game, "--agents", "1e3", "--json", "--trace", str(trace)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["agents"], report["groups"], report["messages"]) == (1000, 1, 6)
    assert [row["answers"] for row in report["rounds"]] == [1000] * 3
    assert report["peak_bytes"] > 10_000_000
    names = [e["name"] for e in json.loads(trace.read_text())["traceEvents"] if e.get("ph") == "X"]
    rounds = [f"round {i}" for i in (1, 2, 3)]
    assert sorted(name for name in names if name.startswith("round")) == sorted(2 * rounds)  # and the group's
    assert names.count("LevelPlayer.answer") == 3000


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--agents", "many"], "'many' agents"),
        (["--place", "sim"], "try: --place process:2"),
    ],
)
def test_misuse_is_named(game, more, expected, capsys):
    assert main(["simulate", game, *more]) == 2
    assert expected in capsys.readouterr().err


def test_another_file_is_named(tmp_path, capsys):
    file = tmp_path / "game.yaml"
    file.write_text("game: chess")
    assert main(["simulate", str(file)]) == 2
    assert "has the game 'chess'" in capsys.readouterr().err
