"""The compiled step against the torch forward of the same checkpoint, in logits and in served texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from steps import PAGE, KeptAs, Logits, Part, Steps
from test_parity import CASES

from lightwork import models
from lightwork.errors import InvariantError
from lightwork.kernels.cpu.formats import CODE4, CODE8_DOT, MatrixFormat
from lightwork.kernels.cpu.isa import host
from lightwork.models import compiled, packed
from lightwork.models.compiled import CompiledModel
from lightwork.models.precisions import Precision
from lightwork.models.precisions.quant import Quant
from lightwork.models.precisions.stored import Stored
from lightwork.testing import FAMILIES

Make = Callable[..., Path]
TREE = (-1, -1, 0, 2, 1)
PARTS = [Part(0, 0, 90), Part(1, 70, 1, TREE), Part(2, 33, 9), Part(3, 0, 1), Part(4, 127, 2, (-1, 0, 1))]


def load(folder: Path, precision: Precision | None = None) -> CompiledModel:
    return models.load_compiled(str(folder), precision=precision or Stored())


def logits_of(model: Any, parts: list[Part] = PARTS) -> Logits:
    return np.concatenate(Steps(model).after(parts))


def distance(got: Logits, expected: Logits) -> float:
    return float(np.sqrt(((got - expected) ** 2).mean() / (expected**2).mean()))


def kind(x: Any) -> str:
    return x if isinstance(x, str) else x.get("dtype") or "-".join(x) or "plain"


STORED = CASES + [(family, {"dtype": dtype}) for dtype in ("bfloat16", "float16") for family in FAMILIES]


@pytest.mark.parametrize(("family", "config"), STORED, ids=kind)
def test_stored_logits_are_those_of_torch(checkpoint: Make, family: str, config: dict[str, Any]) -> None:
    folder = checkpoint(family, **config)
    model = load(folder)
    expected = logits_of(models.load(str(folder)))
    np.testing.assert_allclose(logits_of(model), expected, atol=1e-4, rtol=0)
    model.close()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_16_bits_lose_nothing_in_any_way_of_multiplying(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch, family: str, dtype: str
) -> None:
    """Weights widened in registers for few rows and apart for many, with equal bits; three bfloat16 a row."""
    folder = checkpoint(family, dtype=dtype)
    ways = []
    for matrix in (False, True):
        monkeypatch.setattr(packed, "host", lambda m=matrix: host()._replace(matrix=m))
        model = load(folder)
        ways.append(logits_of(model))
        alone = [Steps(model).after([part])[0] for part in PARTS]
        np.testing.assert_array_equal(np.concatenate(alone), ways[-1])
        model.close()
    assert distance(*ways) < 1e-6
    expected = logits_of(models.load(str(folder)))
    assert distance(ways[1], expected) < 2 * max(distance(ways[0], expected), 1e-7)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_every_activation(checkpoint: Make, activation: str) -> None:
    for family, field in (("llama", "hidden_act"), ("gpt2", "activation_function")):
        folder = checkpoint(family, **{field: activation})
        model = load(folder)
        expected = logits_of(models.load(str(folder)))
        np.testing.assert_allclose(logits_of(model), expected, atol=1e-4, rtol=0)
        model.close()


QUANTS: dict[str, Precision] = {
    "bfloat16": Quant(bits=16, kv_bits=32),
    "8 bits": Quant(bits=8, kv_bits=32, group=32),
    "4 bits": Quant(bits=4, kv_bits=32, group=32),
    "8 bits, float inputs": Quant(bits=8, activations=32, kv_bits=32),
    "4 bits, float inputs": Quant(bits=4, activations=32, kv_bits=32, group=32),
    "nf4": Quant(bits=4, activations=32, table="nf4", kv_bits=32, group=64),
    "8 bits with offsets": KeptAs(matrices=MatrixFormat(code=CODE8_DOT, group=32, affine=True)),
    "4 bits with offsets, float inputs": KeptAs(matrices=MatrixFormat(code=CODE4, group=32, affine=True)),
}
NEAR = {"bfloat16": 0.02, "8 bits": 0.05, "4 bits": 0.05, "8 bits with offsets": 0.05}
"""Root mean square, of that of the logits, where inputs are rounded too: to 2^-9 of themselves, or 1/254 of
the largest of a group, in some 12 products in a row. With float inputs only the order of sums differs."""
OTHER_EXPERT = 2
"""Times as much where a row between two experts may take the other one."""


def rounded(model: Any, form: MatrixFormat) -> None:
    """Give a torch model the weights that the packed bytes stand for."""
    from packing import packed, unpacked

    from lightwork.kernels.cpu.pack import narrow

    def through(w: torch.Tensor) -> torch.Tensor:
        wide = np.ascontiguousarray(w.numpy())
        got, _ = unpacked(packed(wide if form.quantised else narrow(wide), form), form, w.shape[1])
        return torch.from_numpy(got[: len(w), : w.shape[1]].astype(np.float32))

    weights = model.weights
    weights.head = through(weights.head)
    for layer in weights.layers:
        for name in ("qkv", "out", "up", "down"):
            w = getattr(layer, name)
            if w.ndim == 3:
                setattr(layer, name, torch.stack([through(one) for one in w]))
            else:
                setattr(layer, name, through(w))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "qwen3_moe"])
@pytest.mark.parametrize("name", QUANTS)
def test_quantised_logits_are_those_of_the_rounded_weights(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch, family: str, name: str
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "kernels" / "cpu")
    folder, quant = checkpoint(family), QUANTS[name]
    model, reference = load(folder, quant), models.load(str(folder))
    rounded(reference, quant.numbers("float32").matrices)
    parts = [Part(0, 0, 40), Part(1, 30, 1, TREE)]
    got, expected = logits_of(model, parts), logits_of(reference, parts)
    if name in NEAR:
        assert distance(got, expected) <= NEAR[name] * (OTHER_EXPERT if "moe" in family else 1)
    else:
        np.testing.assert_allclose(got, expected, atol=3e-5 * abs(expected).max(), rtol=0)
    model.close()


@pytest.mark.parametrize("kv_bits", [32, 16, 8])
@pytest.mark.parametrize("head_dim", [8, 24, 80])
def test_copied_slots_hold_what_was_copied(checkpoint: Make, kv_bits: int, head_dim: int) -> None:
    model = load(checkpoint("llama", head_dim=head_dim), Quant(bits=8, kv_bits=kv_bits))
    steps = Steps(model)
    last = Part(0, 100, 1)
    steps.begin([last])
    (right,) = steps.run([last])
    old, new = steps.held[0], [steps.free.pop() for _ in steps.held[0]]
    src = [block * PAGE + i for block in old for i in range(PAGE)]
    untouched = [a.copy() for a in (steps.pool.keys, steps.pool.values)]
    steps.pool.copy(src, [block * PAGE + i for block in new for i in range(PAGE)])
    for before, pool in zip(untouched, (steps.pool.keys, steps.pool.values), strict=True):
        np.testing.assert_array_equal(pool[old], before[old])
        np.testing.assert_array_equal(pool[new], before[old])
    for scales in (steps.pool.key_scales, steps.pool.value_scales):
        if kv_bits == 8:
            np.testing.assert_array_equal(scales[new], scales[old])
    steps.held[0] = new
    steps.pool.keys[old], steps.pool.values[old] = 1, 1
    np.testing.assert_array_equal(steps.run([last])[0], right)
    model.close()


@pytest.mark.parametrize("kv_bits", [8, 16, 32])
@pytest.mark.parametrize("head_dim", [8, 24, 80])
def test_slots_may_change_places(checkpoint: Make, kv_bits: int, head_dim: int) -> None:
    """What a row attends to does not depend on the order in which its keys lie."""
    model = load(checkpoint("llama", head_dim=head_dim), Quant(bits=8, kv_bits=kv_bits))
    steps = Steps(model)
    last = Part(0, 100, 1)
    steps.begin([last])
    (right,) = steps.run([last])
    pages, spare = steps.held[0], [steps.free.pop() for _ in steps.held[0]]
    src, aside = (
        [block * PAGE + i for block in blocks for i in range(PAGE)][:100] for blocks in (pages, spare)
    )
    steps.pool.copy(src, aside)
    order = np.random.default_rng(0).permutation(100)
    steps.pool.copy([aside[i] for i in order], src)
    np.testing.assert_allclose(steps.run([last])[0], right, rtol=1e-3, atol=1e-4)
    assert (steps.pool.keys[pages[0]] != steps.pool.keys[spare[0]]).any()
    model.close()


@pytest.mark.parametrize("at_once", [64, 71, 100])
def test_a_step_in_parts_gives_the_same_bits(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    model = load(checkpoint("llama"), Quant(bits=8))
    steps = Steps(model)
    tree = (-1, 0, 0, 1, 3, 2, 5)
    parts = [Part(0, 30, 60, tree), Part(1, 0, 200), Part(2, 17, 1, tree), Part(3, 0, 90, tree)]
    steps.begin(parts)
    whole = steps.run(parts)
    monkeypatch.setattr(compiled, "ROWS_AT_ONCE", at_once)
    for got, right in zip(steps.run(parts), whole, strict=True):
        np.testing.assert_array_equal(got, right)
    model.close()


@pytest.mark.parametrize("precision", [Stored(), Quant(bits=4, group=32)], ids=repr)
def test_rows_grouped_by_expert_have_the_bits_of_rows_alone(checkpoint: Make, precision: Precision) -> None:
    """None is dropped, however many take one expert."""
    model = load(checkpoint("qwen3_moe", num_experts=6, num_experts_per_tok=3), precision)
    (together,), steps = Steps(model).run([Part(0, 0, 90)]), Steps(model)
    alone = [steps.run([Part(0, at, 1)])[0] for at in range(90)]
    np.testing.assert_array_equal(together, np.concatenate(alone))
    model.close()


def test_copies_are_made_one_after_the_other(checkpoint: Make) -> None:
    model = load(checkpoint("llama"), Quant(bits=8, kv_bits=8))
    pool = model.new_kv(2)
    pool.key_scales[:] = np.arange(128).reshape(2, 1, 1, 64)
    pool.copy([70, 71, 72], [63, 70, 71])
    assert pool.key_scales[0, 0, 0, 63] == 70
    assert pool.key_scales[1, 2, 1, 6:9].tolist() == [71, 72, 72]
    model.close()


@pytest.mark.parametrize("kv_bits", [8, 32])
def test_whole_pages_are_copied_as_their_slots_are(checkpoint: Make, kv_bits: int) -> None:
    model = load(checkpoint("llama"), Quant(bits=8, kv_bits=kv_bits))
    pools = [model.new_kv(6), model.new_kv(6)]
    for pool in pools:
        for numbers in pool._arrays():
            numbers[:] = np.random.default_rng(0).integers(-100, 100, numbers.shape)
    src, dst = range(PAGE, 3 * PAGE), range(4 * PAGE, 6 * PAGE)
    pools[0].copy(src, dst)
    pools[1].copy(list(src), list(dst))
    for fast, slow in zip(pools[0]._arrays(), pools[1]._arrays(), strict=True):
        np.testing.assert_array_equal(fast, slow)
        np.testing.assert_array_equal(fast[4:], fast[1:3])
    model.close()


BAD: dict[str, Callable[[Any], None]] = {
    "a row's block is -1": lambda rows: rows.tables[1].fill(-1),
    "a row's block is -1 ": lambda rows: rows.tables[1, :1].fill(-1),
    "a row's block is 160": lambda rows: rows.tables[1, :1].fill(160),
    "a row's block is -1  ": lambda rows: rows.index.__setitem__(-1, 64 * rows.tables.shape[1]),
    "a row's block is -1   ": lambda rows: rows.index.__setitem__(0, -1),
    "a row's slot is -1": lambda rows: rows.slots.__setitem__(2, -1),
    "a row's slot is 10240": lambda rows: rows.slots.__setitem__(2, 160 * 64),
    "a row's token is -5": lambda rows: rows.tokens.__setitem__(0, -5),
    "a row's token is 320": lambda rows: rows.tokens.__setitem__(0, 320),
    "a row's position is -1": lambda rows: rows.positions.__setitem__(0, -1),
    "a row's position is 512": lambda rows: rows.positions.__setitem__(0, 512),
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_exist_is_refused_before_anything_is_computed(checkpoint: Make, message: str) -> None:
    model = load(checkpoint("llama"))
    steps, parts = Steps(model), [Part(0, 20, 1), Part(1, 150, 2)]
    right = steps.after(parts)
    rows = steps.rows(parts)
    kept = steps.pool.keys.copy(), steps.pool.values.copy()
    BAD[message](rows)
    with pytest.raises(InvariantError, match=message.strip()):
        model.logits(rows, steps.pool)
    for before, now in zip(kept, (steps.pool.keys, steps.pool.values), strict=True):
        np.testing.assert_array_equal(now, before)
    for one, other in zip(steps.run(parts), right, strict=True):
        np.testing.assert_array_equal(one, other)
    model.close()


def test_blocks_of_another_size_are_refused(checkpoint: Make) -> None:
    model = load(checkpoint("llama"))
    with pytest.raises(InvariantError, match="KV blocks of 16 tokens"):
        model.new_kv(4, 16)
    model.close()


def test_buffers_grow_with_the_steps(checkpoint: Make) -> None:
    """More rows, sequences, pages, positions and threads, one after the other, and back to few."""
    folder = checkpoint("mixtral", sliding_window=100)
    model, reference = load(folder), models.load(str(folder))
    model.set_threads(1)
    steps, others = Steps(model), Steps(reference)
    growing = [
        [Part(0, 0, 1)],
        [Part(0, 1, 70)],
        [Part(0, 71, 1, TREE), *(Part(i, 0, 3) for i in range(1, 9))],
        [Part(0, 72, 420)],
        [Part(0, 492, 1), Part(1, 3, 1)],
        [Part(0, 493, 1)],
    ]
    for number, parts in enumerate(growing):
        model.set_threads(1 + number % 3)
        for one, other in zip(steps.run(parts), others.run(parts), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4, rtol=0)
    model.close()


def test_a_step_that_scores_nothing_fills_the_pool(checkpoint: Make) -> None:
    model = load(checkpoint("llama"))
    steps = Steps(model)
    rows = steps.rows([Part(0, 0, 30)])
    rows.scored = rows.scored[:0]
    assert model.logits(rows, steps.pool).shape == (0, 320)
    (after,) = steps.run([Part(0, 30, 1)])
    np.testing.assert_array_equal(after, logits_of(model, [Part(0, 30, 1)]))
    model.close()


def test_pools_take_turns(checkpoint: Make) -> None:
    model = load(checkpoint("llama"))
    right = logits_of(model)
    first, second = Steps(model), Steps(model, num_blocks=40)
    for steps in (first, second):
        steps.begin(PARTS)
    for steps in (second, first, second):
        np.testing.assert_array_equal(np.concatenate(steps.run(PARTS)), right)
    model.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_and_values_of_fewer_bits_are_near(checkpoint: Make, family: str) -> None:
    folder, got = checkpoint(family), {}
    for kv_bits in (32, 16, 8):
        model = load(folder, Quant(bits=8, activations=32, kv_bits=kv_bits))
        got[kv_bits] = logits_of(model)
        model.close()
    times = OTHER_EXPERT if family in ("mixtral", "qwen3_moe") else 1
    # In bfloat16, queries and the weights of values are rounded as well.
    assert 0 < distance(got[16], got[32]) < 0.03 * times
    assert 0 < distance(got[8], got[32]) < 0.03 * times


def test_threads_change_and_end_between_steps_while_another_thread_runs_them(checkpoint: Make) -> None:
    model = load(checkpoint("llama"))
    expected = logits_of(model)
    found: list[Logits] = []
    running = Thread(target=lambda: found.extend(logits_of(model) for _ in range(40)), daemon=True)
    running.start()
    while running.is_alive():
        for num_threads in (1, 3, 2):
            model.set_threads(num_threads)
        model.close()
    assert len(found) == 40
    for logits in found:
        np.testing.assert_array_equal(logits, expected)
