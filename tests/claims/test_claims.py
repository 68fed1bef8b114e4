"""A claim is measured, judged within its tolerance, recorded without dates, and never silently dropped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightwork import claims
from lightwork.claims import Lab, Measured, claim, claims_of, measure
from lightwork.claims.results import RESULTS, load, save
from lightwork.claims.systems import SYSTEMS, system_named
from lightwork.cli import main
from lightwork.errors import RangeError, SpecError


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch):
    """Declares claims on a system that is not built, and forgets them afterwards."""
    monkeypatch.setattr(claims, "_CLAIMS", {})
    monkeypatch.setattr(claims, "find_spec", lambda name: name.endswith(".prosper") or None)
    monkeypatch.setattr(claims, "import_module", lambda name: None)
    monkeypatch.setattr("lightwork.cli.claims.built", lambda: ["prosper"])

    def declare(value: float | Measured, **settings) -> None:
        settings = {"paper": "2x", "expect": 2.0, "within": 0.1} | settings

        @claim("prosper", **settings)
        def bars_recovered(lab: Lab) -> float | Measured:
            return value

    return declare


def test_the_seventy_eight_systems_are_listed_in_order():
    assert [s.number for s in SYSTEMS] == list(range(1, 79))
    assert len({s.name for s in SYSTEMS}) == 78
    assert system_named("Sarathi-Serve") is system_named("sarathi") is SYSTEMS[20]
    assert all(s.name.isidentifier() and s.counts_when for s in SYSTEMS)


def test_a_name_nobody_knows_suggests_the_nearest():
    with pytest.raises(SpecError) as caught:
        claims_of("saratih")
    assert caught.value.expected == "sarathi"


@pytest.mark.parametrize(
    ("value", "bound", "state"),
    [
        (2.0, "near", "reproduced"),
        (1.79, "near", "missed"),
        (2.21, "near", "missed"),
        (9.0, "at least", "reproduced"),
        (1.79, "at least", "missed"),
        (0.1, "at most", "reproduced"),
        (2.21, "at most", "missed"),
        (float("nan"), "at least", "missed"),
    ],
)
def test_a_claim_holds_within_its_tolerance(toy, value, bound, state):
    toy(value, bound=bound)
    (verdict,) = measure("prosper")
    assert verdict.state == state
    assert (verdict.claim.title, verdict.claim.mode) == ("bars recovered", "simulated")


def test_a_tolerance_of_everything_is_refused(toy):
    with pytest.raises(RangeError, match=r"claim tolerance 1\.0"):
        toy(1.0, within=1.0)


def test_verdicts_name_paper_figure_measured_figure_and_world(toy, capsys):
    toy(Measured(1.95, "tiny model"), mode="real", title="bars found")
    assert main(["claims", "prosper"]) == 0
    assert capsys.readouterr().out == (
        "prosper  bars found   paper 2x   here 1.95x (real)   holds (near 2x, within 10%)  tiny model\n"
    )


def test_a_missed_claim_exits_with_three(toy, capsys):
    toy(1.0)
    assert main(["claims", "prosper"]) == 3
    assert "MISSED" in capsys.readouterr().out
    assert main(["claims", "prosper", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["prosper"][0]["state"] == "missed"


def test_a_system_without_claims_is_not_built_yet(monkeypatch, capsys):
    monkeypatch.setattr(claims, "find_spec", lambda name: None)
    assert main(["claims", "prosper"]) == 1
    assert capsys.readouterr().out == "prosper  not built yet\n"


def test_the_record_lists_all_systems_and_has_no_dates(toy, tmp_path: Path):
    toy(1.0)
    file = tmp_path / "results.json"
    save({"prosper": measure("prosper")}, {"commit": "abc"}, file)
    first = file.read_bytes()
    save({"prosper": measure("prosper")}, {"commit": "abc"}, file)
    assert file.read_bytes() == first
    standings = load(file)
    assert len(standings) == 78
    assert [s.state for s in standings[:2]] == ["missed", "not built yet"]


def test_who_is_not_measured_keeps_the_verdicts_recorded(toy, tmp_path: Path):
    toy(1.0)
    file = tmp_path / "results.json"
    save({"prosper": measure("prosper")}, {}, file)
    save({"pulp": measure("prosper")}, {}, file)
    assert [s.state for s in load(file)[:2]] == ["missed", "missed"]


def test_a_broken_record_says_how_to_write_it_again(tmp_path: Path):
    file = tmp_path / "results.json"
    file.write_text("[]")
    with pytest.raises(SpecError, match="make claims"):
        load(file)


def test_saving_needs_something_that_is_measured(capsys):
    assert main(["claims", "--save"]) == 2
    assert "--all" in capsys.readouterr().err


def test_every_recorded_verdict_is_of_a_system_that_is_built():
    recorded = json.loads(RESULTS.read_text())["systems"] if RESULTS.is_file() else {}
    assert set(recorded) <= set(claims.built())


@pytest.mark.parametrize("name", claims.built())
def test_every_claim_file_declares_its_system(name: str):
    assert claims_of(name)
