"""The command line: found by listing, helpful when mistyped, plain in a pipe."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest

from lightwork import __version__
from lightwork.cli import _options, main
from lightwork.cli._output import StatusLine, show_table
from lightwork.cli._verbs import MAX_OPTIONS, Verb, lightwork
from lightwork.errors import LightworkError, RangeError, UsageError

VERBS = lightwork.list_commands(click.Context(lightwork))


def verb(name: str) -> Verb:
    command = lightwork.get_command(click.Context(lightwork), name)
    assert isinstance(command, Verb)
    return command


def test_the_verbs_are_the_files():
    assert {"bench", "chat", "claims", "demo", "probe", "serve", "sim", "techniques", "trace"} <= set(VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_has_two_examples_and_few_options(name: str, capsys):
    command = verb(name)
    assert len(command.examples) >= 2
    assert all(example.split("lightwork ")[1].split()[0] == name for example in command.examples)
    options = [p for p in command.params if isinstance(p, click.Option)]
    assert len(options) <= MAX_OPTIONS
    assert all(option.help for option in options)
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Examples:")


def test_help_begins_with_two_examples(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Examples:"
    assert [line.split()[0] for line in lines[1:3]] == ["lightwork", "lightwork"]
    assert [line.split()[0] for line in lines if line.split()[:1] in [[v] for v in VERBS]] == VERBS


def test_no_verb_is_misuse_and_shows_help(capsys):
    assert main([]) == 2
    assert "Examples:" in "".join(capsys.readouterr())


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightwork {__version__}\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["serv", "tiny:llama"], "  expected: serve\n  try: lightwork serve"),
        (["techniques", "Ngrm"], "  expected: Ngram\n  try: Ngram"),
        (["techniques", "--jsn"], "--json"),
        (["serve"], "  try: lightwork serve --help"),
        (["claims", "sarathy"], "  expected: sarathi\n  try: lightwork claims sarathi"),
        (["techniques", "--kind", "shceduler"], "proposer"),
    ],
)
def test_misuse_exits_with_two_and_suggests_the_nearest(line, expected, capsys):
    assert main(line) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert expected in captured.err


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (
            UsageError("wrong", expected="right", fix="this"),
            2,
            "UsageError: wrong\n  expected: right\n  try: this\n",
        ),
        (LightworkError("broken"), 1, "LightworkError: broken\n"),
        (KeyboardInterrupt(), 130, "Stopped: by Ctrl-C\n"),
    ],
)
def test_exit_codes(raised, code, said, capsys, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("lightwork.cli.techniques.listing", fail)
    assert main(["techniques"]) == code
    assert capsys.readouterr().err.strip() == said.strip()


def test_techniques_in_words_and_for_machines(capsys):
    assert main(["techniques"]) == 0
    out = capsys.readouterr().out
    assert "Ngram" in out
    assert "Sarathi" in out
    assert main(["techniques", "--json", "--kind", "proposer"]) == 0
    assert {t["kind"] for t in json.loads(capsys.readouterr().out)} == {"proposer"}
    assert main(["techniques", "Ngram"]) == 0
    out = capsys.readouterr().out
    assert "--use 'Ngram(" in out
    assert "cost" in out


def test_the_matrix_shows_every_pair_within_80_columns_and_says_why_not(capsys):
    from lightwork.serve.pairs import paired, pairs

    assert main(["techniques", "--matrix"]) == 0
    drawn = capsys.readouterr().out.splitlines()
    rows = (line.split() for line in drawn[1 : drawn.index("")])
    grid = {words[1]: words[2] for words in rows if len(words) > 1}
    names = [technique.name for technique in paired()]
    assert [*grid] == names
    assert max(map(len, drawn)) <= 80
    assert main(["techniques", "--matrix", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told) == len(pairs()) > 300
    marks = {("real", "simulated"): "●", ("real",): "◐", ("simulated",): "○", (): "×"}
    for pair in told:
        mark = marks[tuple(pair["tested"])]
        assert grid[pair["first"]][names.index(pair["second"])] == mark
        assert {*pair["tested"]} | {*pair["refused"]} == {"real", "simulated"}
        if not pair["field"]:
            assert grid[pair["second"]][names.index(pair["first"])] == mark
    for i, name in enumerate(names):
        assert grid[name][i] == "·"
    assert main(["techniques", "LoraTuning", "--matrix"]) == 0
    out = capsys.readouterr().out
    assert "leaves no time for training; expected CoServe around it" in out
    assert re.search("Ngram +tested +tested", out)
    assert main(["techniques", "Poisson", "--matrix"]) == 2
    assert "Poisson is a load" in capsys.readouterr().err


def test_claims_lists_every_system(capsys):
    assert main(["claims"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 79
    assert main(["claims", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 78


def test_a_table_in_a_pipe_is_never_cut(capsys):
    show_table(("name", "value"), [("x" * 300, 0.123456), ("y", None)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "x" * 300 + "  0.1235"
    assert lines[2] == "y" + " " * 299 + "  -"


def test_the_status_line_vanishes_outside_a_terminal(capsys):
    with StatusLine() as status:
        status("running 3")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("text", "size"), [("5", 5), ("512MB", 512_000_000), ("2GiB", 2**31), ("1.5k", 1500), ("3 B", 3)]
)
def test_sizes(text, size):
    assert _options.size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1XB", "1e9", "G", "9" * 40, "1GB2", "0x1", "nan"])
def test_what_is_not_a_size_is_refused(text):
    with pytest.raises(RangeError, match="is not a size"):
        _options.size(text)


def test_a_missing_trace_file_is_misuse(tmp_path: Path, capsys):
    assert main(["trace", str(tmp_path / "absent.json")]) == 2
    assert "absent.json" in capsys.readouterr().err
