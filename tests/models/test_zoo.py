"""A zoo keeps equal blocks once, and what shares blocks computes what it computes alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lightwork import models
from lightwork.claims._variants import EIGHT, eight, lessons
from lightwork.errors import CheckpointError, SpecError
from lightwork.kernels.rows import Rows
from lightwork.models.chains import share
from lightwork.models.held_out import read_held_out
from lightwork.models.model import Model
from lightwork.models.peft import read_adapter
from lightwork.models.zoo import Zoo, gather
from lightwork.testing import tiny_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
BASE = models.resolve("tiny:llama")
TOKENS = read_held_out(BASE)[0].tokens[:40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of eight fine-tunes."""
    top = tmp_path_factory.mktemp("fine-tunes")
    eight(BASE, top, lessons)
    return top


@pytest.fixture(scope="module")
def zoo(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = Zoo(tmp_path_factory.mktemp("zoo"))
    for name in ("", *EIGHT):
        zoo.add(name, folder / name if name else BASE)
    return zoo


@pytest.fixture
def mine(zoo: Zoo, tmp_path: Path) -> Zoo:
    """A copy that a test may change."""
    assert zoo.folder is not None
    shutil.copytree(zoo.folder, tmp_path / "zoo")
    return Zoo(tmp_path / "zoo")


@pytest.fixture(scope="module")
def together(folder: Path) -> Model:
    model = models.load("tiny:llama")
    share(model, *gather(BASE, {name: folder / name for name in EIGHT}))
    return model


def logits(model: Model, *names: str, tokens: np.ndarray = TOKENS) -> np.ndarray:
    """Of a text, once for each model, in one step."""
    rows, num = Rows.of_text(tokens, 16), len(names)
    blocks = rows.tables.shape[1]
    many = Rows(
        tokens=np.tile(rows.tokens, num),
        positions=np.tile(rows.positions, num),
        slots=np.concatenate([rows.slots + 16 * blocks * i for i in range(num)]),
        seqs=np.arange(num, dtype=np.int32).repeat(len(tokens)),
        index=np.tile(rows.index, num),
        ancestors=np.tile(rows.ancestors, num),
        known=np.tile(rows.known, num),
        tables=np.concatenate([rows.tables + blocks * i for i in range(num)]),
        scored=np.arange(num * len(tokens)),
        models=names,
    )
    return model.logits(many, model.new_kv(blocks * num, 16)).reshape(num, len(tokens), -1)


def test_the_blocks_of_eight_fine_tunes_take_less_than_half(zoo: Zoo) -> None:
    assert zoo.folder is not None
    apart = sum(zoo.blocks[i].nbytes for name in EIGHT for i in zoo.chain(name))
    assert zoo.nbytes <= 0.45 * apart
    on_disk = sum(file.stat().st_size for file in (zoo.folder / "blocks").iterdir())
    assert on_disk < 1.2 * zoo.nbytes


@pytest.mark.parametrize("name", ["", *EIGHT])
def test_a_chain_has_the_bits_of_its_own_model(folder: Path, together: Model, name: str) -> None:
    adapter = name.startswith("adapter")
    own, version = models.load(str(folder / name) if name and not adapter else "tiny:llama"), ""
    if adapter:
        version = own.adapters.put(read_adapter(folder / name, own.spec))
    expected = logits(own, version)
    assert np.array_equal(logits(together, name), expected)
    assert not name or np.abs(expected - logits(together, "")).max() > 1e-3


def test_rows_of_all_models_in_one_step_are_computed_by_their_own(together: Model) -> None:
    names = ["", *EIGHT, "adapter-1", "whole-0"]
    mixed = logits(together, *names)
    for name, found in zip(names, mixed, strict=True):
        assert np.allclose(found, logits(together, name)[0], atol=2e-4)


def test_blocks_are_in_memory_once(zoo: Zoo, together: Model) -> None:
    as_stored = zoo.nbytes * 2  # float16 there, float32 here; adapters are float32 in both
    assert together.nbytes < as_stored < sum(models.load("tiny:llama").nbytes for _ in EIGHT) / 2


def test_a_zoo_is_found_again_and_keeps_no_block_twice(zoo: Zoo, mine: Zoo) -> None:
    assert mine.blocks == zoo.blocks
    before = mine.nbytes
    mine.add("copy", BASE)
    assert mine.nbytes == before
    assert mine.chain("copy") == mine.chain("")
    assert Zoo(mine.folder).applications == [*zoo.applications, "copy"]


def test_what_cannot_be_a_chain_is_refused_when_it_is_registered(
    mine: Zoo, folder: Path, tmp_path: Path
) -> None:
    chain = [*mine.chain("")]
    with pytest.raises(SpecError, match="no application"):
        mine.chain("nobody")
    with pytest.raises(SpecError, match="no application"):
        mine.add("tuned", folder / "adapter-0", base="nobody")
    with pytest.raises(SpecError, match="comes back"):
        mine.register("round", [*chain[:4], *chain[1:]])
    with pytest.raises(SpecError, match="names block"):
        mine.register("lost", [*chain[:-1], "f" * 24])
    with pytest.raises(SpecError, match="no model"):
        mine.register("short", [*chain[:3], *chain[5:]])
    with pytest.raises(SpecError, match="not taken"):
        mine.register("", chain)
    mine.add("wider", tiny_checkpoint(tmp_path / "wider"))
    other = mine.chain("wider")
    with pytest.raises(SpecError, match="equal widths"):
        mine.register("joined", [*chain[:3], *other[3:]])
    with pytest.raises(CheckpointError, match="model that it was made for"):
        mine.add("misfit", folder / "adapter-0", base="wider")
    assert not {"tuned", "round", "lost", "short", "joined", "misfit"} & {*mine.applications}


def test_models_of_another_shape_are_not_computed_together(tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other")
    model = models.load("tiny:llama")
    with pytest.raises(CheckpointError, match="another shape"):
        share(model, *gather(BASE, {"other": other}))


def test_a_damaged_zoo_says_so(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path)
    base = tiny_checkpoint(tmp_path / "model")
    zoo.add("a", base)
    (tmp_path / "blocks" / f"{zoo.chain('a')[1]}.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(CheckpointError, match="damaged"):
        share(models.load(str(base)), *gather(base, {"a": tmp_path}))
    kept = json.loads((tmp_path / "zoo.json").read_text())
    kept["applications"]["a"][1] = "../../secret"
    (tmp_path / "zoo.json").write_text(json.dumps(kept))
    with pytest.raises(CheckpointError, match="garbled"):
        Zoo(tmp_path)


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "mixtral"])
def test_other_families_have_chains_too(tmp_path: Path, family: str) -> None:
    folders = [tiny_checkpoint(tmp_path / name, family, seed=i) for i, name in enumerate("ab")]
    together = models.load(str(folders[0]))
    share(together, *gather(folders[0], {"b": folders[1]}))
    for name, own in zip(["", "b"], folders, strict=True):
        expected = logits(models.load(str(own)), "", tokens=np.arange(20))
        assert np.array_equal(logits(together, name, tokens=np.arange(20)), expected)
