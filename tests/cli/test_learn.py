"""Sparse coding from the shell: learnt, kept, gone on with, drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightwork.cli import main

SMALL = ["--components", "10", "--iterations", "3"]


def test_what_is_learnt_is_kept_and_drawn(tmp_path: Path, capsys: Any) -> None:
    file = str(tmp_path / "bars.safetensors")
    assert main(["learn", "fit", "bars", *SMALL, "--save", file, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], len(told["components"]), len(told["components"][0])) == ("BSC", 10, 25)
    assert (
        main(["learn", "fit", "bars", *SMALL, "--save", file, "--json"]) == 0
    )  # it has ended: nothing is left to do
    assert json.loads(capsys.readouterr().out) == told
    assert main(["learn", "plot", file]) == 0
    drawn = capsys.readouterr().out
    assert "█" in drawn
    assert "BSC: noise" in drawn


def test_rows_of_a_file(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("\n".join("1,2,3" if i % 2 else "0,0,1" for i in range(20)), encoding="utf-8")
    assert main(["learn", "fit", str(file), "--model", "GSC", "--components", "2", "--iterations", "2"]) == 0
    assert "GSC: noise" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["fit", "nowhere.csv"], ["plot", "nowhere.safetensors"]])
def test_a_source_that_is_none_is_refused(arguments: list[str], capsys: Any) -> None:
    assert main(["learn", *arguments]) in (1, 2)
    assert "nowhere" in capsys.readouterr().err
