"""The record of the peers: a newer row takes the place of the older, and the best peer is the hardest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightwork.claims.peers import BARS, PEERS, Row, best_peers, keep, load
from lightwork.errors import SpecError

WHERE = {
    "engine_threads": 2,
    "date": "2026-01-31",
    "commit": "abc123",
    "cpu": "Some Xeon",
    "instructions": ["avx2", "amx_int8"],
    "threads": 2,
    "load": 0.1,
}


def measured(cell: str = "decode", peer: str = "llama", ratio: float = 1.5, **others: Any) -> dict[str, Any]:
    """What the benchmark hands over of one cell."""
    figures = {"unit": "tokens/s", "lightwork": 300.0, "peer_figure": 300.0 / ratio, "pairs": 9, "use": []}
    ratios = {"ratio": ratio, "ratio_min": ratio - 0.1, "ratio_max": ratio + 0.1}
    versions = {"versions": {"lightwork": {"lightwork": "0.1.0"}, peer: {peer: "1.2"}}}
    named = {"cell": cell, "shape": "34M", "weights": "f32", "peer": peer}
    return named | WHERE | figures | ratios | versions | others


def absent(
    cell: str = "all", peer: str = "llama", why: str = "no environment", **others: Any
) -> dict[str, Any]:
    return {"cell": cell, "shape": "34M", "weights": "f32", "peer": peer, "absent": why} | WHERE | others


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "peers.json"


def kept(file: Path, *records: dict[str, Any]) -> list[Row]:
    for record in records:
        keep(record, file)
    return load(file)


def test_the_record_in_the_package_can_be_read():
    assert PEERS.is_file()
    assert all(row.cell in BARS or row.absent is not None for row in load())


def test_nothing_is_on_record_without_a_file(file: Path):
    assert load(file) == []


def test_a_newer_row_takes_the_place_of_the_older(file: Path):
    rows = kept(file, measured(ratio=1.5), measured(ratio=1.2, date="2026-02-01"))
    assert [(row.ratio, row.date) for row in rows] == [(1.2, "2026-02-01")]


@pytest.mark.parametrize(
    "other",
    [
        {"cell": "prefill"},
        {"shape": "1.1B"},
        {"weights": "8bit"},
        {"peer": "vllm"},
        {"cpu": "Some EPYC"},
        {"instructions": ["avx2"]},
        {"engine_threads": 1},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_row_of_something_else_stays(file: Path, other: dict[str, Any]):
    assert len(kept(file, measured(), measured() | other)) == 2


def test_figures_take_the_place_of_the_reason_why_there_were_none(file: Path):
    assert [row.absent for row in kept(file, absent())] == ["no environment"]
    assert [row.absent for row in kept(file, measured())] == [None]
    assert len(kept(file, absent(peer="vllm"), absent(weights="8bit"), measured())) == 3


def test_a_reason_does_not_take_the_place_of_other_cells_figures(file: Path):
    rows = kept(file, measured("decode"), absent("all", why="ended during generate"))
    assert [row.absent for row in rows] == [None, "ended during generate"]


def test_a_newer_reason_takes_the_place_of_the_older(file: Path):
    rows = kept(file, absent("http", why="first"), absent("http", why="second"))
    assert [row.absent for row in rows] == ["second"]


def test_a_reason_is_one_line_and_names_no_folder_of_the_machine(file: Path):
    why = 'ended:\n  File "/srv/peers/llama/bin/run.py", line 3\nno environment /srv/peers/llama'
    (row,) = kept(file, absent(why=why))
    assert row.absent == 'ended: File "run.py", line 3 no environment llama'


def test_the_file_does_not_depend_on_the_order_of_measuring(tmp_path: Path):
    records = [
        measured("decode"),
        measured("http", peer="vllm"),
        measured("decode", peer="vllm"),
        measured("decode", shape="1.1B"),
        measured("decode", shape="160M"),
        absent(peer="openvino"),
    ]
    there, back = tmp_path / "there.json", tmp_path / "back.json"
    rows = kept(there, *records)
    kept(back, *reversed(records))
    assert there.read_bytes() == back.read_bytes()
    assert [row.shape for row in rows] == ["34M"] * 4 + ["160M", "1.1B"]
    assert [row.cell for row in rows[:4]] == ["decode", "decode", "http", "all"]


def test_a_row_is_a_line_and_comes_back_as_it_was(file: Path):
    kept(file, measured(equal_tokens=0.99, limit=512.5), absent("http"))
    lines = file.read_text().splitlines()
    assert len(lines) == 4
    assert json.loads(lines[1].rstrip(",")) == measured(equal_tokens=0.99, limit=512.5)
    assert json.loads(lines[2]) == absent("http")
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("text", ["", "{", "{}x", '{"rows": []}', '[{"cell": "decode"}]', "[1]"])
def test_a_broken_record_says_how_to_measure_it_again(file: Path, text: str):
    file.write_text(text)
    with pytest.raises(SpecError, match=r"serve_peers\.py"):
        load(file)
    with pytest.raises(SpecError):
        keep(measured(), file)
    assert file.read_text() == text


def test_a_field_that_no_row_has_is_refused(file: Path):
    with pytest.raises(TypeError, match="speed"):
        keep(measured(speed=3), file)
    assert not file.exists()


def test_the_best_peer_is_the_one_with_the_lowest_ratio(file: Path):
    rows = kept(
        file,
        measured(peer="llama", ratio=1.4),
        measured(peer="openvino", ratio=1.2),
        measured(peer="vllm", ratio=3.0),
        measured("prefill", peer="vllm", ratio=0.9),
        measured(peer="vllm", ratio=0.5, cpu="Some EPYC"),
        measured(peer="vllm", ratio=0.7, weights="8bit"),
        absent(peer="ctranslate2"),
    )
    best = {(row.cpu, row.weights, row.cell): row.peer for row in best_peers(rows)}
    assert best == {
        ("Some EPYC", "f32", "decode"): "vllm",
        ("Some Xeon", "8bit", "decode"): "vllm",
        ("Some Xeon", "f32", "decode"): "openvino",
        ("Some Xeon", "f32", "prefill"): "vllm",
    }


@pytest.mark.parametrize(
    ("cell", "ratio", "missed"),
    [
        ("decode", 1.1, False),
        ("decode", 1.09, True),
        ("prefill", 1.0, False),
        ("prefill", 0.99, True),
        ("batch", 1.19, True),
        ("http", 1.2, False),
        ("http ttft p99", 1.19, True),
        ("memory", 0.99, True),
        ("start cold", 0.1, False),
    ],
)
def test_a_cell_is_missed_below_its_bar(cell: str, ratio: float, missed: bool):
    assert Row(**measured(cell, ratio=ratio)).missed is missed


def test_a_row_without_figures_misses_nothing():
    assert not Row(**absent("http")).missed
