"""Blocks of unequal width in one chain, joined by a stitch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightwork import models
from lightwork.claims._variants import lessons, tune, widened
from lightwork.errors import SpecError
from lightwork.kernels.rows import Rows
from lightwork.models.chains import share
from lightwork.models.equivalence import THRESHOLD, Probes
from lightwork.models.held_out import read_held_out
from lightwork.models.peft import write_adapter
from lightwork.models.stitching import stitch
from lightwork.models.zoo import Zoo
from lightwork.testing import random_adapter, text_logits

pytestmark = pytest.mark.usefixtures("one_thread")
BASE = models.resolve("tiny:llama")
TEXTS = [text.tokens[:128] for text in read_held_out(BASE)[:6]]
WIDE = 112


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The built-in model, with wider rows, and that tuned."""
    top = tmp_path_factory.mktemp("wide")
    widened(BASE, top / "wide", WIDE)
    tune(top / "wide", top / "tuned", lessons(1), last_only=False)
    return {"": BASE, "wide": top / "wide", "tuned": top / "tuned"}


@pytest.fixture
def probes(folders: dict[str, Path], tmp_path: Path) -> Probes:
    zoo = Zoo(tmp_path / "zoo")
    for name, folder in folders.items():
        zoo.add(name, folder)
    return Probes(models.load("tiny:llama"), zoo, TEXTS)


def test_wider_rows_are_computed_beside_narrow_ones(probes: Probes, folders: dict[str, Path]) -> None:
    model, zoo = models.load("tiny:llama"), probes.zoo
    share(model, zoo, {name: zoo.chain(name) for name in zoo.applications})
    for name, folder in folders.items():
        rows = Rows.of_text(TEXTS[0], 16)
        rows.models = [name]
        found = model.logits(rows, model.new_kv(8, 16))
        assert np.array_equal(found, text_logits(models.load(str(folder)), TEXTS[0].tolist()))
    assert zoo.spec(zoo.chain("wide")).hidden_size == WIDE


@pytest.mark.parametrize("second", ["wide", "tuned"])
@pytest.mark.parametrize("layer", [2, 6])
def test_a_stitched_chain_stands_in_for_the_model_it_ends_as(probes: Probes, second: str, layer: int) -> None:
    zoo = probes.zoo
    joined = stitch(probes, "", second, layer)
    assert [zoo.blocks[i].kind for i in joined].count("stitch") == 1
    zoo.register("joined", joined)
    assert Zoo(zoo.folder).chain("joined") == joined
    unseen = [text.tokens[:128] for text in read_held_out(BASE)[6:9]]
    similarity, agreement = Probes(probes.model, zoo, unseen).likeness(zoo.chain(second), joined)
    assert similarity >= THRESHOLD
    assert agreement > 0.9


def test_a_stitched_chain_is_served_beside_its_parts(probes: Probes) -> None:
    zoo, model = probes.zoo, models.load("tiny:llama")
    zoo.register("joined", stitch(probes, "", "tuned", 4))
    names = ["", "tuned", "joined"]
    share(model, zoo, {name: zoo.chain(name) for name in names})
    text = TEXTS[0][:16]
    num = len(names)
    alone = []
    for name in names:
        rows = Rows.of_text(text, 16)
        rows.models = [name]
        alone.append(model.logits(rows, model.new_kv(1, 16)))
    rows = Rows.of_text(np.tile(text, num), 16)
    rows.positions = np.tile(np.arange(16), num)
    rows.index, rows.known = rows.positions, np.full(num, 16)
    rows.seqs = np.arange(num, dtype=np.int32).repeat(16)
    rows.tables, rows.models = np.arange(num, dtype=np.int32)[:, None], names
    mixed = model.logits(rows, model.new_kv(num, 16))
    assert np.allclose(mixed, np.concatenate(alone), atol=2e-4)


def test_what_cannot_be_joined_is_refused(probes: Probes, tmp_path: Path) -> None:
    zoo = probes.zoo
    for layer in (0, 9):
        with pytest.raises(SpecError, match="joined before"):
            stitch(probes, "", "wide", layer)
    joined = stitch(probes, "", "wide", 4)
    tied = (*joined[:-1], zoo.chain("wide")[-1])
    with pytest.raises(SpecError, match="embedding of another"):
        zoo.register("tied", tied)
    with pytest.raises(SpecError, match="equal widths"):
        zoo.register("unjoined", [i for i in joined if zoo.blocks[i].kind != "stitch"])
    spec = models.read_shape("tiny:llama")
    write_adapter(tmp_path / "adapter", random_adapter(spec, "adapter"), spec)
    zoo.register("joined", joined)
    with pytest.raises(SpecError, match="block of kind stitch"):
        zoo.add("adapted", tmp_path / "adapter", base="joined")
