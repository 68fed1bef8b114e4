"""A model folder that cannot be served ends `lightwork serve` with a three-part error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lightwork.cli import main


def missing_shard(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {
        "model.norm.weight": "model-00002-of-00002.safetensors",
        "lm_head.weight": "model-00001-of-00002.safetensors",
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return "model-00002-of-00002.safetensors"


def truncated(folder: Path) -> str:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    return "cut off or damaged"


def pickled(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return "only pickle files"


def unknown(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["MambaForCausalLM"]}))
    return "MambaForCausalLM is not supported"


def not_json(folder: Path) -> str:
    (folder / "config.json").write_text("{")
    return "is not JSON"


def no_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return "no tokenizer.json"


@pytest.mark.parametrize("breaks", [missing_shard, truncated, pickled, unknown, not_json, no_tokenizer])
def test_serve_says_what_is_wrong_with_a_folder(
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    breaks: Callable[[Path], str],
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("llama"), folder)
    words = breaks(folder)
    assert main(["serve", str(folder), "--port", "0"]) in (1, 2)
    said = capsys.readouterr().err
    assert words in said
    assert "expected: " in said
    assert "try: " in said
