"""Blocks may stand in for each other when the models' probabilities say so."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from lightwork import models
from lightwork.claims._variants import lessons, randomised, tune
from lightwork.models.equivalence import THRESHOLD, Probes, assemble, swapped
from lightwork.models.held_out import read_held_out
from lightwork.models.zoo import Zoo

pytestmark = pytest.mark.usefixtures("one_thread")
BASE = models.resolve("tiny:llama")
TEXTS = [text.tokens[:48] for text in read_held_out(BASE)[:3]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zoo of the base, of itself tuned for a few steps, and of itself with random weights."""
    folder = tmp_path_factory.mktemp("equivalence")
    tune(BASE, folder / "tuned", lessons(1), last_only=False)
    randomised(BASE, folder / "random", seed=0)
    zoo = Zoo(folder / "zoo")
    for name, model in (("", BASE), ("tuned", folder / "tuned"), ("random", folder / "random")):
        zoo.add(name, model)
    return folder / "zoo"


@pytest.fixture
def probes(made: Path, tmp_path: Path) -> Probes:
    """Over a copy that a test may change."""
    shutil.copytree(made, tmp_path / "zoo")
    return Probes(models.load("tiny:llama"), Zoo(tmp_path / "zoo"), TEXTS)


def test_a_block_in_its_own_place_changes_nothing(probes: Probes) -> None:
    chain = probes.zoo.chain("")
    assert probes.likeness(chain, swapped(chain, chain[5], chain[5])) == pytest.approx((1.0, 1.0), abs=1e-12)


def test_random_weights_are_no_stand_in(probes: Probes) -> None:
    chain, other = probes.zoo.chain(""), probes.zoo.chain("random")
    assert probes.likeness(chain, other)[0] < 0.5
    assert probes.likeness(chain, [other[0], *chain[1:]])[0] < 0.5
    assert probes.likeness(chain, [*chain[:3], other[3], *chain[4:]])[0] < 0.5


def test_edges_join_what_was_tuned_lightly_and_nothing_random(probes: Probes) -> None:
    edges, zoo = probes.relate(), probes.zoo
    joined = {frozenset((edge.a, edge.b)) for edge in edges}
    pairs = zip(zoo.chain(""), zoo.chain("tuned"), strict=True)
    assert joined == {frozenset((a, b)) for a, b in pairs if a != b}
    assert all(edge.similarity >= THRESHOLD and 0.9 <= edge.agreement <= 1.0 for edge in edges)
    assert Zoo(zoo.folder).edges == edges


def test_a_chain_is_assembled_within_its_budget(probes: Probes) -> None:
    zoo = probes.zoo
    zoo.add("copy", BASE)  # a second user makes the base's blocks worth sharing
    costs = sorted(1.0 - edge.similarity for edge in probes.relate())
    chain = zoo.chain("tuned")
    assert assemble(zoo, "tuned", 0.0) == [*chain]
    some = assemble(zoo, "tuned", float(np.sum(costs[:3])) + 1e-9)
    assert sum(a != b for a, b in zip(some, chain, strict=True)) == 3
    assert assemble(zoo, "tuned", 1.0) == [*zoo.chain("")]
    zoo.register("tuned in shared blocks", some)
    assert probes.likeness(chain, some)[0] >= THRESHOLD
