"""`lightwork probe` shows every constant with its source, in readable units."""

from __future__ import annotations

import json

import pytest

from lightwork.cli import main
from lightwork.cli.probe import constants
from lightwork.cluster import Cluster, parse_place
from lightwork.cluster.probe import Report
from lightwork.shown import readable, unit_of


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    known = parse_place("sim:a100x8")
    busy = Report(machine=known, samples=(), declared={}, share=0.5, predictions=())
    monkeypatch.setattr("lightwork.cluster.probe.survey", lambda **_: busy)
    return known


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (3.12e14, "op/s", "312 Top/s"),
        (2e9, "B/s", "2 GB/s"),
        (999.9, "s", "1 ks"),
        (4.5e-6, "s", "4.5 µs"),
        (0.0, "s", "0 s"),
        (108, "", "108"),
    ],
)
def test_units_are_readable(value, unit, text):
    assert readable(value, unit) == text


def test_units_come_from_the_names():
    assert [unit_of(f) for f in ("read_bytes_per_s", "bytes", "launch_s", "count")] == ["B/s", "B", "s", ""]


def test_every_constant_has_a_value_and_a_source():
    rows = list(constants(parse_place("sim:a100x8")))
    assert len(rows) > 8
    assert all(value and source for _, value, source in rows)


def test_the_machine_is_shown_and_saved(machine, tmp_path, capsys):
    file = tmp_path / "machine.json"
    assert main(["probe", "--save", str(file)]) == 1
    assert "other processes run here" in capsys.readouterr().err
    assert not file.exists()
    assert main(["probe", "--save", str(file), "--force"]) == 0
    assert machine.device.name in capsys.readouterr().out
    assert Cluster.from_dict(json.loads(file.read_text())) == machine
    assert main(["probe", "--json"]) == 0
    assert Cluster.from_dict(json.loads(capsys.readouterr().out)) == machine
    assert main(["probe", "--force", "--save", str(file / "m.json")]) == 1
