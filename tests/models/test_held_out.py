"""How well a model predicts text it was not trained on, beside what quantises it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("numba")

from lightwork import models
from lightwork.errors import CheckpointError
from lightwork.models.held_out import perplexity, read_held_out
from lightwork.models.precisions.stored import Stored
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan


def test_perplexity_is_that_of_the_torch_model() -> None:
    texts = read_held_out(models.resolve("tiny:llama"))[:4]
    compiled = models.load_compiled("tiny:llama", precision=Stored())
    ours = perplexity(compiled, texts)
    compiled.close()
    assert ours == pytest.approx(perplexity(models.load("tiny:llama"), texts), rel=1e-4)
    assert 1.0 < ours < 1.1


@pytest.mark.parametrize(("bits", "most"), [(16, 1.002), (8, 1.002), (4, 1.02)])
def test_what_quantises_reports_what_it_costs(bits: int, most: float) -> None:
    _, model, settings = open_engine(Plan(use=(f"Quant(bits={bits})",)), Kernel(WallClock()))
    (said,) = [s.value for s in settings if s.name == "perplexity"]
    before, after = (float(word) for word in said.split()[:3:2])
    assert after <= before * most
    model.close()


def test_a_model_without_held_out_text_reports_none(tmp_path: Path) -> None:
    assert read_held_out(tmp_path) == []


@pytest.mark.parametrize(
    "entry",
    [{}, {"tokens": [1, 2]}, {"tokens": [1, 2], "scored": [1]}, {"tokens": [1, 2], "scored": [1, 0]}],
)
def test_garbled_held_out_text_is_refused(tmp_path: Path, entry: dict[str, object]) -> None:
    (tmp_path / "held_out.json").write_text(json.dumps({"texts": [entry]}))
    with pytest.raises(CheckpointError, match=r"held_out\.json"):
        read_held_out(tmp_path)
