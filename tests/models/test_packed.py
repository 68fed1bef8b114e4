"""The file that packed weights are kept in: made once, whole, and never needed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from safetensors.numpy import load_file, save_file
from steps import Part, Steps

from lightwork import models
from lightwork.errors import CheckpointError
from lightwork.models import packed
from lightwork.models.checkpoint import Checkpoint
from lightwork.models.precisions import Precision
from lightwork.models.precisions.quant import Quant
from lightwork.models.precisions.stored import Stored

Make = Callable[..., Path]
ROUNDED = [
    Quant(bits=8),
    Quant(bits=4),
    Quant(bits=8, activations=32),
    Quant(bits=4, activations=32, table="nf4"),
]


@pytest.fixture
def folder(checkpoint: Make, tmp_path: Path) -> Path:
    """A checkpoint of this test's own."""
    return shutil.copytree(checkpoint("llama"), tmp_path / "model")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files are kept, of models however small."""
    monkeypatch.setattr(packed, "KEPT_BYTES", 0)
    monkeypatch.setenv("LIGHTWORK_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tensors that are read from checkpoints."""
    names: list[str] = []
    get = Checkpoint.get

    def counted(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Any:
        names.append(name)
        return get(checkpoint, name, shape)

    monkeypatch.setattr(Checkpoint, "get", counted)
    return names


def scores(folder: Path, precision: Precision | None = None) -> list[float]:
    """Logits of a few tokens by the model of a folder."""
    model = models.load_compiled(str(folder), precision=precision or Stored())
    (got,) = Steps(model, num_blocks=1).run([Part(0, 0, 5)])
    model.close()
    return list(got.reshape(-1).tolist())


def kept(home: Path) -> list[Path]:
    """Everything that is kept; no unfinished file may be among it."""
    files = sorted((home / "packed").iterdir())
    assert all(file.suffix == ".bin" for file in files)
    return files


@pytest.mark.parametrize("precision", [Stored(), *ROUNDED], ids=repr)
def test_the_second_load_reads_no_tensor(
    folder: Path, home: Path, reads: list[str], precision: Precision
) -> None:
    first = scores(folder, precision)
    assert len(reads) > 20
    assert len(kept(home)) == 1
    reads.clear()
    assert scores(folder, precision) == first
    assert reads == []


def test_each_precision_has_a_file_of_its_own(folder: Path, home: Path) -> None:
    different = {tuple(scores(folder, precision)) for precision in [Stored(), *ROUNDED]}
    assert len(different) == len(kept(home)) == 1 + len(ROUNDED)


def test_small_models_are_not_kept(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "KEPT_BYTES", 1 << 30)
    scores(folder)
    assert not home.exists()


def test_a_changed_checkpoint_is_packed_again(folder: Path, home: Path, reads: list[str]) -> None:
    before = scores(folder)
    file = folder / "model.safetensors"
    stat = file.stat()
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] * 2
    save_file(tensors, file, {"format": "pt"})
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    reads.clear()
    assert scores(folder) != before
    assert reads


def test_a_changed_shape_is_packed_again(folder: Path, home: Path) -> None:
    """Of the same bytes: only config.json says whose the head is."""
    before = scores(folder)
    config = folder / "config.json"
    config.write_text(
        config.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true')
    )
    assert scores(folder) != before


@pytest.mark.parametrize("wrong", ["truncated", "empty", "longer", "foreign", "a folder"])
def test_a_file_that_is_not_whole_is_replaced(folder: Path, home: Path, wrong: str) -> None:
    right = scores(folder)
    (file,) = kept(home)
    whole = file.read_bytes()
    if wrong == "a folder":
        file.unlink()
        file.mkdir()
        with pytest.warns(UserWarning, match="packed weights cannot be kept"):
            assert scores(folder) == right
        return
    made = {"truncated": whole[:-1], "empty": b"", "longer": whole + b"\0", "foreign": b"not weights"}
    file.write_bytes(made[wrong])
    assert scores(folder) == right
    assert kept(home) == [file]
    assert file.read_bytes() == whole


@pytest.mark.parametrize("where", ["under a file", "read-only"])
def test_a_home_that_cannot_be_written_warns_and_serves(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path, where: str
) -> None:
    monkeypatch.setattr(packed, "KEPT_BYTES", 1 << 30)
    right = scores(folder)
    monkeypatch.setattr(packed, "KEPT_BYTES", 0)
    (tmp_path / "file").touch()
    place = tmp_path / "file" if where == "under a file" else Path("/proc/1")
    monkeypatch.setenv("LIGHTWORK_HOME", str(place))
    with pytest.warns(UserWarning, match="packed weights cannot be kept in .*set LIGHTWORK_HOME"):
        assert scores(folder) == right


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount")
@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount")
def test_a_full_disk_warns_and_serves(folder: Path, home: Path, tmp_path: Path) -> None:
    small = tmp_path / "home"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this process may not mount")
    try:
        with pytest.warns(UserWarning, match="No space left on device"):
            first = scores(folder)
        assert kept(small) == []
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
    assert scores(folder) == first


def test_a_checkpoint_that_lacks_a_tensor_says_so_and_leaves_nothing(folder: Path, home: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no tensor model\.layers\.2\.mlp\.down_proj\.weight"):
        scores(folder)
    assert kept(home) == []


@pytest.mark.parametrize("precision", ROUNDED, ids=repr)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e5])
def test_what_cannot_be_quantised_is_refused_by_name(
    folder: Path, home: Path, precision: Precision, value: float
) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    tensors[name][3, 7] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        scores(folder, precision)
    assert kept(home) == []


PROGRAM = """
import sys
from lightwork import models
from lightwork.models import packed
from lightwork.models.precisions.stored import Stored
packed.KEPT_BYTES = 0
def progress(phase, done, total):
    print(phase, done, total, flush=True)
    if done * 2 > total:
        sys.stdin.readline()
model = models.load_compiled(sys.argv[1], precision=Stored(), progress=progress)
print("loaded", flush=True)
sys.stdin.readline()
"""


def start(folder: Path) -> subprocess.Popen[str]:
    """A process that packs a model, and waits for a line when half is done and when it has loaded."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def until(process: subprocess.Popen[str], wanted: Callable[[list[str]], bool]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if wanted(line.split()):
            return
    raise AssertionError("the process ended early")


def half_done(words: list[str]) -> bool:
    return words[0] == "convert" and int(words[1]) * 2 > int(words[2])


@pytest.mark.multiproc
def test_a_packer_that_is_killed_leaves_no_file(folder: Path, home: Path) -> None:
    with start(folder) as process:
        until(process, half_done)
        process.send_signal(signal.SIGKILL)
    assert list((home / "packed").glob("*.bin")) == []
    right = scores(folder)
    assert len(list((home / "packed").glob("*.bin"))) == 1
    assert scores(folder) == right


@pytest.mark.multiproc
def test_two_packers_at_once_end_with_one_whole_file_that_both_use(folder: Path, home: Path) -> None:
    with start(folder) as one, start(folder) as other:
        for process in (one, other):
            until(process, half_done)
        for process in (one, other):
            assert process.stdin is not None
            process.stdin.write("\n" * 1000)
            process.stdin.flush()
            until(process, lambda words: words == ["loaded"])
            process.stdin.close()
    assert [one.returncode, other.returncode] == [0, 0]
    (file,) = kept(home)
    whole = file.read_bytes()
    file.unlink()
    scores(folder)
    assert kept(home)[0].read_bytes() == whole


def test_weights_of_a_kept_file_are_shared_and_read_only(folder: Path, home: Path) -> None:
    scores(folder)
    (file,) = kept(home)
    model = models.load_compiled(str(folder), precision=Stored())
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(file) in line]
    assert [line.split()[1] for line in maps] == ["r--s"]
    model.close()


def test_no_warning_where_all_is_well(folder: Path, home: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores(folder)
        scores(folder)
