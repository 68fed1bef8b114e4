"""Pictures of techniques: drawn from runs, never wider than a terminal, or a reason why there is none."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lightwork.cli import _pictures, main
from lightwork.cli._pictures import DRAWN, WITHOUT, Picture, picture
from lightwork.techniques import find, listing

NONE = {"ByModel", "CoServe", "Forced", "Priority", "Recorded", "TimeSharing"}
"""Of drawn kinds, those that need something of their user's."""
COMPUTED = {"Cascade", "DraftModel", "EasySpec", "Nat", "PPD", "Pearl"}


def test_every_kind_is_drawn_or_says_why_not() -> None:
    kinds = {technique.kind for technique in listing()}
    assert kinds == DRAWN.keys() | WITHOUT.keys()
    assert not DRAWN.keys() & WITHOUT.keys()


@pytest.mark.parametrize("name", [t.name for t in listing() if t.kind in DRAWN])
def test_a_technique_is_drawn_within_80_columns(name: str) -> None:
    drawn = picture(find(name))
    if name in NONE | COMPUTED:
        assert isinstance(drawn, str)
        return
    assert isinstance(drawn, Picture), drawn
    assert max(map(len, drawn.lines)) <= 80
    assert len(drawn.lines) <= 24


def lanes(lines: list[str], use: str, num: int) -> list[str]:
    at = lines.index(use) + 1
    return [line.split(maxsplit=1)[1] for line in lines[at : at + num]]


def test_the_picture_shows_what_the_technique_is_for() -> None:
    """A long prompt stops those that decode, unless it comes in chunks."""
    drawn = picture(find("Sarathi"))
    assert isinstance(drawn, Picture)
    chunked, stalled = (lanes(drawn.lines, use, 6) for use in ("Sarathi()", "PrefillFirst()"))
    other = next(line for line in drawn.lines if "other steps" in line)
    waits = next(part for part in other.split("  ") if part.endswith("other steps"))[0]
    assert waits in stalled[0]
    assert waits not in chunked[0]


def test_drafts_end_the_same_text_in_fewer_steps() -> None:
    with_drafts, without = (_pictures._written(use) for use in (("Ngram(k=6)",), ()))
    said = _pictures.AGAIN.split()
    assert [word for step in with_drafts for word in step] == said
    assert [word for step in without for word in step] == said
    assert len(without) == len(said)
    assert len(with_drafts) < len(without) / 2


def test_who_foresees_keeps_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["techniques", "Belady"]) == 0
    out = capsys.readouterr().out
    there = [int(line.split()[-2]) for line in out.splitlines() if line.endswith(" there")]
    assert there[0] > there[1] > 0


def test_a_technique_is_shown_with_its_verdict_and_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["techniques", "Sarathi"]) == 0
    out = capsys.readouterr().out
    assert "sarathi  throughput" in out or "sarathi " in out
    assert "; reproduced" in out or "; missed" in out
    assert "requests to llama-3-8b on sim:a100, simulated" in out
    assert main(["techniques", "Quant"]) == 0
    assert "picture  none: it changes numbers" in capsys.readouterr().out


def test_the_list_runs_nothing() -> None:
    code = (
        "import sys; from lightwork.cli import main; main(['techniques']);"
        "assert 'numpy' not in sys.modules and 'lightwork.cli._pictures' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
