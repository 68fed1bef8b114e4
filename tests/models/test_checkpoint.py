"""Model folders: shards, types, older layouts, and what is said when one cannot be loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightwork import models
from lightwork.errors import CheckpointError
from lightwork.models.precisions.stored import Stored
from lightwork.models.spec import ModelSpec, read_spec

Break = Callable[[Path], object]


@pytest.fixture
def folder(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("llama"), tmp_path / "model"))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def shard(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file({n: state[n] for n in names if where[n] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def lose_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def cut(folder: Path, name: str = "model.safetensors") -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1000])


def cut_shards(folder: Path) -> None:
    shard(folder)
    for number in (1, 2):
        cut(folder, f"model-0000{number}-of-00002.safetensors")


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


NORM, EMBED = "model.norm.weight", "model.embed_tokens.weight"
BROKEN: list[tuple[Break, str]] = [
    (shutil.rmtree, "there is no folder"),
    (lambda f: (f / "config.json").unlink(), r"has no config\.json"),
    (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
    (lambda f: (f / "config.json").write_text("[]"), "holds a list"),
    (lambda f: edit_config(f, architectures=["MambaForCausalLM"]), "MambaForCausalLM is not supported"),
    (lambda f: edit_config(f, hidden_size=None), "lacks or garbles"),
    (lambda f: edit_config(f, quantization_config={"bits": 4}), "is quantised with"),
    (lambda f: edit_config(f, rope_parameters={"rope_type": "yarn"}), "'yarn' is not supported"),
    (lambda f: edit_config(f, intermediate_size=49), "has shape"),
    (lambda f: edit_config(f, num_hidden_layers=2), "no place for: model.layers.2"),
    (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    (pickle_only, "only pickle files"),
    (lose_shard, "lacks the shard model-00002-of-00002"),
    (cut, "cut off or damaged"),
    (cut_shards, "00[12]-of-00002.safetensors is cut off or damaged"),
    (lambda f: edit_weights(f, lambda s: s.pop(EMBED)), "has no (tensor|embedding)"),
    (lambda f: edit_weights(f, lambda s: s.pop(NORM)), f"has no tensor {NORM}"),
    (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be read"),
]


def load_compiled(folder: str) -> object:
    pytest.importorskip("numba")
    return models.load_compiled(folder, precision=Stored())


@pytest.mark.parametrize("load", [models.load, load_compiled])
@pytest.mark.parametrize(("spoil", "message"), BROKEN, ids=[m for _, m in BROKEN])
def test_a_broken_folder_is_explained(
    folder: Path, spoil: Break, message: str, load: Callable[[str], object]
) -> None:
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(str(folder))
    assert caught.value.expected
    assert caught.value.fix


def test_shards_and_progress(folder: Path) -> None:
    whole = models.load(str(folder))
    shard(folder)
    seen: list[tuple[int, int]] = []
    model = models.load(f"hf:{folder}", progress=lambda _, done, total: seen.append((done, total)))
    for a, b in zip(whole.weights.tensors(), model.weights.tensors(), strict=True):
        assert torch.equal(a, b)
    assert seen == sorted(seen)
    assert 0 < seen[-1][0] <= seen[-1][1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_read_in_the_type_asked_for(folder: Path, dtype: str) -> None:
    assert {str(t.dtype) for t in models.load(str(folder), dtype=dtype).weights.tensors()} == {
        f"torch.{dtype}"
    }


def test_rotary_settings_as_transformers_4_wrote_them(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    rope = {"rope_type": "linear", "factor": 2.0}
    new = ModelSpec.from_config(config | {"rope_parameters": rope | {"rope_theta": 7.0}})
    del config["rope_parameters"]
    assert ModelSpec.from_config(config | {"rope_scaling": rope, "rope_theta": 7.0}) == new


def test_the_published_gpt2_names_its_tensors_without_a_prefix(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    plain = checkpoint("gpt2")
    folder = Path(shutil.copytree(plain, tmp_path / "gpt2"))
    state = {k.removeprefix("transformer."): v for k, v in load_file(plain / "model.safetensors").items()}
    save_file(state | {"h.0.attn.bias": torch.ones(1, 1, 4, 4)}, folder / "model.safetensors")
    for a, b in zip(
        models.load(str(plain)).weights.tensors(), models.load(str(folder)).weights.tensors(), strict=True
    ):
        assert torch.equal(a, b)
    assert read_spec(folder).tied
