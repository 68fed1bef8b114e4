"""`lightwork bench`: the table against the peers, and two sets of techniques."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightwork.claims.peers import AGAIN, Row, load
from lightwork.cli import main
from lightwork.cli._peers import show_peers
from lightwork.models import read_shape
from lightwork.models.peft import write_adapter
from lightwork.testing import random_adapter


def row(cell: str, peer: str = "llama", ratio: float = 1.5, **others: Any) -> Row:
    settings: dict[str, Any] = {
        "shape": "34M",
        "weights": "8bit",
        "use": ["Quant(bits=8)"],
        "unit": "tokens/s",
        "lightwork": 12345.0,
        "peer_figure": 345.67,
        "ratio": ratio,
        "ratio_min": 0.5,
        "ratio_max": 1.75,
        "pairs": 9,
        "engine_threads": 2,
        "versions": {"lightwork": {"lightwork": "0.1.0"}, peer: {f"{peer}-lib": "1.2"}},
        "date": "2026-01-31",
        "commit": "abc123",
        "cpu": "Some Xeon",
        "instructions": ["avx2", "amx_int8"],
        "threads": 2,
        "load": 0.1,
    }
    return Row(cell=cell, peer=peer, **(settings | others))


def table(capsys: pytest.CaptureFixture[str], *rows: Row) -> list[str]:
    show_peers(rows, as_json=False)
    return capsys.readouterr().out.splitlines()


def test_the_table_has_one_row_per_cell_with_the_best_peer(capsys):
    rows = (row("http"), row("decode", ratio=1.3), row("decode", "vllm", ratio=1.2), row("start cold"))
    lines = table(capsys, *rows)
    assert lines[0] == "Some Xeon, 2 threads (avx2 amx_int8)"
    assert lines[2] == "34M 8bit, lightwork with Quant(bits=8)"
    head = lines[3].split()
    assert head == ["cell", "unit", "lightwork", "theirs", "best", "peer", "ratio", "range", "n", "bar"]
    assert [" ".join(line.split()) for line in lines[4:7]] == [
        "decode tokens/s 12345 345.7 vllm 1.20x [0.50, 1.75] 9 1.1",
        "http tokens/s 12345 345.7 llama 1.50x [0.50, 1.75] 9 1.2",
        "start cold tokens/s 12345 345.7 llama 1.50x [0.50, 1.75] 9 -",
    ]


def test_cells_below_their_bar_are_marked_and_counted(capsys):
    lines = table(capsys, row("decode", ratio=1.09), row("prefill", ratio=1.0), row("start warm", ratio=0.1))
    assert [line.split()[0] for line in lines if line.endswith("MISSED")] == ["decode"]
    assert "missed    1 of 2 cells are below their bar" in lines


def test_under_the_table_stands_where_it_was_measured_and_how_to_do_it_again(capsys):
    lines = table(
        capsys,
        row("decode"),
        row("prefill", "vllm", date="2026-02-01", commit="def456"),
        row("all", "ctranslate2", absent="no environment ct2"),
        row("http", "openvino", absent="has no server of its own"),
    )
    assert "measured  2026-01-31 at abc123, 2026-02-01 at def456" in lines
    assert "versions  lightwork 0.1.0, llama-lib 1.2, vllm-lib 1.2" in lines
    assert "absent    34M 8bit ctranslate2: no environment ct2" in lines
    assert "absent    34M 8bit http openvino: has no server of its own" in lines
    assert lines[-1] == f"measure again: {AGAIN}"


def test_processors_shapes_and_weights_have_tables_of_their_own(capsys):
    lines = table(
        capsys,
        row("decode"),
        row("decode", shape="1.1B"),
        row("decode", weights="f32", use=()),
        row("decode", cpu="Some EPYC", instructions=(), engine_threads=1),
    )
    heads = [line for line in lines if "thread" in line or " with " in line]
    assert heads == [
        "Some EPYC, 1 thread (instructions unknown)",
        "34M 8bit, lightwork with Quant(bits=8)",
        "Some Xeon, 2 threads (avx2 amx_int8)",
        "34M 8bit, lightwork with Quant(bits=8)",
        "34M f32, lightwork with no technique",
        "1.1B 8bit, lightwork with Quant(bits=8)",
    ]


def test_a_processor_on_which_every_peer_was_absent_has_no_table(capsys):
    lines = table(capsys, row("all", absent="no environment llama"))
    assert lines[:3] == [
        "Some Xeon, 2 threads (avx2 amx_int8)",
        "",
        "absent    34M 8bit llama: no environment llama",
    ]


def test_an_empty_record_says_how_to_measure(capsys):
    lines = table(capsys)
    assert lines[0] == "no peer was measured yet"
    assert AGAIN in lines[1]
    show_peers([], as_json=True)
    assert json.loads(capsys.readouterr().out) == []


def test_json_has_every_row_on_record(capsys):
    rows = [row("decode"), row("decode", "vllm"), row("http", "vllm", absent="has no server of its own")]
    show_peers(rows, as_json=True)
    assert [Row(**record) for record in json.loads(capsys.readouterr().out)] == rows


def test_the_verb_prints_the_record_of_the_package(capsys):
    assert main(["bench"]) == 0
    assert AGAIN in capsys.readouterr().out
    assert main(["bench", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps([r.record() for r in load()]))


def test_the_table_loads_no_heavy_library():
    heavy = ("torch", "numpy", "numba", "fastapi")
    script = (
        "import sys; from lightwork.cli import main; assert main(['bench']) == 0;"
        f"loaded = [m for m in {heavy!r} if m in sys.modules]; assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_one_set_of_techniques_alone_is_refused(capsys):
    assert main(["bench", "Sarathi(chunk=256)"]) == 2
    error = capsys.readouterr().err
    assert "only A is given" in error
    assert "lightwork bench 'Sarathi(chunk=256)' plain" in error


@pytest.mark.parametrize(
    ("option", "value", "quoted"),
    [("--rounds", "3", "3"), ("--on", "cpu", "cpu"), ("--load", "Poisson(rate=4)", "'Poisson(rate=4)'")],
)
def test_an_option_of_a_comparison_is_not_dropped_in_silence(option: str, value: str, quoted: str, capsys):
    assert main(["bench", option, value]) == 2
    assert f"PrefillFirst {option} {quoted}" in capsys.readouterr().err


def test_a_load_drives_several_adapters(
    checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("numba")
    model = str(checkpoint("llama"))
    spec = read_shape(model)
    for i, name in enumerate(("one", "two")):
        write_adapter(tmp_path / name, random_adapter(spec, name, i), spec)
    lora = f"Lora(folder='{tmp_path}')"
    lengths = "Lognormal(prompt=10, output=4)"
    load = f"Zipf(models=('', 'one', 'two'), inner=Burst(num_requests=9, lengths={lengths}))"
    for on in ("cpu", "sim:a100"):
        line = ["bench", f"{lora}+Ngram", lora, "--model", model, "--on", on, "--rounds", "1", "--load", load]
        assert main([*line, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["ratios"]["output_tokens_per_s"][0] > 0
        assert main([*line[:9], "--load", load.replace("two", "three")]) == 2
        assert "no model is called 'three" in capsys.readouterr().err
