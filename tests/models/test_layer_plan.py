"""Layers in groups: which plans there are, and that both ways to compute them agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightwork import models
from lightwork.errors import RangeError, SpecError
from lightwork.kernels.cpu.formats import PAGE
from lightwork.kernels.cpu.team import ARRIVED
from lightwork.kernels.rows import Rows
from lightwork.models.layer_plan import LayerPlan
from lightwork.models.precisions import Precision
from lightwork.models.precisions.quant import Quant
from lightwork.models.precisions.stored import Stored
from lightwork.testing import FAMILIES

Groups = tuple[tuple[int, ...], ...]


def plan(*groups: Sequence[int]) -> LayerPlan:
    return LayerPlan(num_layers=sum(map(len, groups)), groups=tuple(map(tuple, groups)))


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        (((0, 1), (3,)), "2 missing"),
        (((0,), (1, 1), (2, 3)), "1 repeated"),
        (((0, 2), (1, 3)), "2, 1, 3 not behind the one before"),
        (((0,), (1, 2, 3, 4, -1)), "4, -1 not in the model"),
        (((0, 1), (), (2, 3)), "1 empty"),
        (((3, 3),), "0, 1, 2 missing; 3 repeated"),
        ((), "0, 1, 2, 3 missing"),
    ],
)
def test_a_wrong_plan_is_refused_with_its_layers(groups: Groups, told: str) -> None:
    with pytest.raises(SpecError, match=told) as error:
        LayerPlan(num_layers=4, groups=groups)
    assert error.value.expected == "layers 0 to 3, each once, in order"


def test_groups_are_spread_over_the_middle() -> None:
    """As the publication's example has them: 20 stages for 32 layers."""
    found = LayerPlan.spread(32).groups
    assert found == (
        *((i,) for i in range(4)),
        *((i, i + 1) for i in range(4, 28, 2)),
        *((i,) for i in range(28, 32)),
    )
    assert len(found) == 20
    assert [len(group) for group in LayerPlan.spread(9, 4).groups] == [1, 4, 3, 1]
    for num_layers in range(1, 20):
        for size in range(1, 5):
            assert LayerPlan.spread(num_layers, size).starts[-1] == num_layers
    with pytest.raises(RangeError, match="groups of 0"):
        LayerPlan.spread(4, 0)


def text(num: int, seed: int = 0) -> Rows:
    return Rows.of_text(np.random.default_rng(seed).integers(0, 250, num), PAGE)


def logits(model: Any, rows: Rows, how: LayerPlan | None) -> Any:
    return model.logits(rows, model.new_kv(4, PAGE), how).copy()


PRECISIONS: list[Precision] = [Stored(), Quant(bits=8, group=32), Quant(bits=4, group=32)]


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_groups_are_torchs(checkpoint: Callable[..., Path], family: str) -> None:
    folder = str(checkpoint(family))
    compiled, reference = models.load_compiled(folder, precision=Stored()), models.load(folder)
    num_layers = compiled.spec.num_layers
    rows = text(70)
    exact = logits(reference, rows, None)
    for how in (plan((0,), (1, 2)), LayerPlan.spread(num_layers, 1)):
        expected = logits(reference, rows, how)
        np.testing.assert_allclose(logits(compiled, rows, how), expected, atol=1e-4, rtol=0)
        assert np.array_equal(expected, exact) == (how.most == 1)
    compiled.close()


@pytest.mark.parametrize("precision", PRECISIONS, ids=repr)
@pytest.mark.parametrize("family", ["qwen2", "mixtral"])
def test_bits_depend_on_neither_threads_nor_neighbours(
    checkpoint: Callable[..., Path], family: str, precision: Precision
) -> None:
    """Nor on a plan of groups of one."""
    folder = str(checkpoint(family))
    model = models.load_compiled(folder, precision=precision)
    together, alone = plan((0,), (1, 2)), plan((0,), (1,), (2,))
    rows = text(70)
    model.set_threads(1)
    exact, found = logits(model, rows, None), logits(model, rows, together)
    np.testing.assert_array_equal(logits(model, rows, alone), exact)
    for threads in (2, 3):
        model.set_threads(threads)
        np.testing.assert_array_equal(logits(model, rows, together), found)
    np.testing.assert_array_equal(logits(model, text(70), None), exact)
    kv = model.new_kv(4, PAGE)
    one_by_one = [model.logits(part, kv, together).copy() for part in rows.parts(64)]
    np.testing.assert_array_equal(np.concatenate(one_by_one), found)
    stored = models.load_compiled(folder, precision=Stored())
    away, grouped_away = (
        float(np.abs(got - logits(stored, rows, how)).mean())
        for how, got in ((None, exact), (together, found))
    )
    assert grouped_away <= 1.5 * away  # rounding does no more harm to groups
    stored.close()
    model.close()


def test_long_texts_whose_heads_are_cut_between_threads() -> None:
    """In several layers at once: the partial results of each are merged with its own."""
    compiled, reference = models.load_compiled("tiny:llama", precision=Stored()), models.load("tiny:llama")
    how, rows = plan(range(4), range(4, 9)), text(600)
    found = []
    for threads in (1, 2, 3):
        compiled.set_threads(threads)
        kv = compiled.new_kv(10, PAGE)
        found.append(np.concatenate([compiled.logits(part, kv, how).copy() for part in rows.parts(599)]))
    expected = reference.logits(rows, reference.new_kv(10, PAGE), how)
    np.testing.assert_allclose(found[0], expected, atol=1e-3, rtol=0)
    assert all(np.array_equal(found[0], other) for other in found[1:])
    compiled.close()


def test_attention_stages_are_as_many_as_groups() -> None:
    """Of the compiled step, whose threads wait for each other five times in each of them: behind norms,
    products, what is stored, attention, and merging."""
    model = models.load_compiled("tiny:llama", precision=Stored())
    model.set_threads(2)

    def waits(how: LayerPlan) -> int:
        control = model._team.control  # type: ignore[union-attr]
        before = int(control[ARRIVED])
        logits(model, text(5), how)
        return (int(control[ARRIVED]) - before) // 2

    whole = waits(plan(range(9)))
    plans = [LayerPlan.spread(9, size) for size in (1, 2, 3)] + [plan(range(4), range(4, 9))]
    assert [len(how.groups) for how in plans] == [9, 6, 5, 2]
    assert [waits(how) - whole for how in plans] == [5 * (len(how.groups) - 1) for how in plans]
    model.close()


def test_what_cannot_go_together_is_refused(checkpoint: Callable[..., Path]) -> None:
    windows = {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1}
    model = models.load_compiled(str(checkpoint("qwen2", **windows)), precision=Stored())
    assert model.spec.windowed == {1, 2}
    assert logits(model, text(70), plan((0,), (1, 2))).shape == (70, model.spec.vocab_size)
    with pytest.raises(SpecError, match=r"layers \(0, 1\) do not see the same keys"):
        logits(model, text(70), plan((0, 1), (2,)))
    adapted = text(4)
    adapted.models = ("someone",)
    with pytest.raises(SpecError, match="adapters"):
        logits(model, adapted, plan((0,), (1, 2)))
    model.close()
