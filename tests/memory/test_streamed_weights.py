"""A real model whose weights come from disk: the bits of the resident one, in a memory with a hard limit."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("torch")

from numpy.typing import NDArray
from steps import Part, Steps

from lightwork import models
from lightwork.errors import CheckpointError, InvariantError, SpecError
from lightwork.memory.residencies import Residency
from lightwork.memory.residencies.lru import LRU
from lightwork.memory.residencies.sliding import Sliding
from lightwork.memory.residencies.window import Window
from lightwork.memory.streamed_weights import StreamedWeights, streamed
from lightwork.models import blocks
from lightwork.models.compiled import CompiledModel
from lightwork.models.precisions import Precision
from lightwork.models.precisions.quant import Quant
from lightwork.models.precisions.stored import Stored
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan
from lightwork.serve.sequence import Request
from lightwork.serve.simulate import run_load
from lightwork.testing import FAMILIES

Make = Callable[..., Path]
PARTS = [Part(0, 0, 90), Part(1, 70, 1, (-1, 0, 0)), Part(2, 33, 9), Part(4, 127, 2, (-1, 0, 1))]
LONG = [Part(0, 0, 500)]
"""More rows than are computed at once: weights pass through twice."""
DEEP = {"num_hidden_layers": 16, "hidden_size": 64, "intermediate_size": 192}


def opened(folder: Path, policy: Residency[Any], precision: Precision | None = None) -> CompiledModel:
    arrive = partial(streamed, policy)
    return models.load_compiled(str(folder), precision=precision or Stored(), arrive=arrive)


def arriving(model: CompiledModel) -> StreamedWeights:
    found = model.arriving
    assert isinstance(found, StreamedWeights)
    return found


def logits_of(model: CompiledModel, parts: list[Part] = PARTS) -> NDArray[np.float32]:
    return np.concatenate(Steps(model).after(parts))


@pytest.fixture(scope="module")
def expected() -> Callable[..., NDArray[np.float32]]:
    """What the resident model computes."""

    def compute(
        folder: Path, precision: Precision | None = None, parts: list[Part] = PARTS
    ) -> NDArray[np.float32]:
        model = models.load_compiled(str(folder), precision=precision or Stored())
        found = logits_of(model, parts)
        model.close()
        return found

    return compute


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_bits_of_the_resident_model(
    checkpoint: Make, expected: Callable[..., NDArray[np.float32]], family: str
) -> None:
    folder = checkpoint(family)
    for policy in (Sliding(), Window(k=2, k_move=1)):
        model = opened(folder, policy)
        np.testing.assert_array_equal(logits_of(model), expected(folder))
        np.testing.assert_array_equal(logits_of(model, LONG), expected(folder, parts=LONG))
        model.close()


ALL_WINDOWS = [
    *(Sliding(window=w) for w in (2, 3, 4, 40)),
    *(Window(k=k, k_move=m) for k in range(1, 6) for m in range(1, k + 1)),
    Window(k=4, k_move=1, stay=2),
    Window(k=17),
]


@pytest.mark.parametrize("policy", ALL_WINDOWS, ids=repr)
def test_every_window_has_the_same_bits_and_stays_within_its_memory(
    checkpoint: Make, expected: Callable[..., NDArray[np.float32]], policy: Residency[Any]
) -> None:
    folder = checkpoint("llama", **DEEP)
    model = opened(folder, policy)
    weights = arriving(model)
    assert policy.ring is not None
    largest = max(unit.nbytes for unit in weights.units.values())
    num = min(policy.ring.slots, len(weights.units))
    assert weights.arena.nbytes == weights.residents.cap_bytes == num * largest
    np.testing.assert_array_equal(logits_of(model), expected(folder))
    copies, read = weights.residents.copies, weights.file.read_bytes
    moving = len(weights.units) - getattr(policy, "stay", 0)
    Steps(model).run([Part(0, 0, 4)])
    if num == len(weights.units):
        assert weights.residents.copies == copies == num
    elif getattr(policy, "k_move", 1) == 1:
        assert weights.residents.copies - copies == moving
    assert weights.file.read_bytes > read  # of the embedding if of nothing else
    model.close()


@pytest.mark.parametrize("precision", [Quant(bits=8, group=32), Quant(bits=4, group=32)], ids=repr)
def test_rounded_weights_stream_as_they_are_packed(
    checkpoint: Make, expected: Callable[..., NDArray[np.float32]], precision: Precision
) -> None:
    folder = checkpoint("llama", **DEEP)
    model = opened(folder, Sliding(), precision)
    np.testing.assert_array_equal(logits_of(model), expected(folder, precision))
    model.close()


def test_a_model_four_times_the_memory_is_served_with_the_same_text(checkpoint: Make) -> None:
    folder = str(checkpoint("llama", **DEEP))

    def texts(use: list[str]) -> tuple[list[list[int]], list[Any]]:
        kernel = Kernel(WallClock())
        engine, model, settings = open_engine(Plan(model=folder, max_len=256, use=use), kernel)
        requests = [Request(prompt=tuple(range(3, 30 + i)), max_tokens=8) for i in range(3)]
        seqs = run_load(engine, [0.0] * 3, requests)
        model.close()
        return [seq.tokens[seq.prompt_len :] for seq in seqs], settings

    plain, _ = texts([])
    found, settings = texts(["Sliding(window=2)"])
    assert found == plain
    (told,) = (setting for setting in settings if setting.name == "weights")
    here, whole = (float(number) for number in told.value.removesuffix(" MB").split(" of "))
    assert whole > 4 * here
    assert told.reason.startswith("Sliding(window=2)")
    assert texts(["Window(k=3)", "Copy"])[0] == plain


def test_weights_that_cannot_be_read_are_told_and_the_next_pass_goes_on(
    checkpoint: Make, expected: Callable[..., NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("llama", **DEEP)
    model = opened(folder, Sliding())
    before = logits_of(model)
    preadv, calls = blocks.os.preadv, []

    def broken(*args: Any) -> int:
        calls.append(args)
        if len(calls) == 20:
            raise OSError(5, "Input/output error")
        return preadv(*args)

    monkeypatch.setattr(blocks.os, "preadv", broken)
    with pytest.raises(CheckpointError, match="Input/output error"):
        logits_of(model)
    np.testing.assert_array_equal(logits_of(model), before)
    np.testing.assert_array_equal(before, expected(folder))
    model.close()


def test_a_step_that_fails_leaves_what_is_resident_consistent(checkpoint: Make) -> None:
    model = opened(checkpoint("llama", **DEEP), Window(k=3, k_move=2))
    before = logits_of(model)
    weights, computed = arriving(model), []

    def fail(first: int, last: int) -> None:
        computed.append(first)
        if len(computed) == 7:
            raise InvariantError("a unit's forward failed")

    with pytest.raises(InvariantError, match="forward failed"):
        weights.run(fail)
    assert weights.residents.nbytes <= weights.residents.cap_bytes
    np.testing.assert_array_equal(logits_of(model), before)
    model.close()


def test_the_thread_that_reads_ends_with_its_model_or_when_that_is_closed(checkpoint: Make) -> None:
    def reading() -> int:
        return sum(thread.name == "lightwork-weights" for thread in threading.enumerate())

    def wait() -> None:
        for thread in threading.enumerate():
            if thread.name == "lightwork-weights":
                thread.join(10)

    model = opened(checkpoint("llama"), Sliding())
    first = logits_of(model)
    assert reading() == 1
    model.close()
    wait()
    assert reading() == 0
    np.testing.assert_array_equal(logits_of(model), first)
    assert reading() == 1
    del model
    gc.collect()
    wait()
    assert reading() == 0


@pytest.mark.parametrize(
    ("settings", "use"),
    [
        ({}, ["LRU"]),
        ({"on": "sim:h100"}, ["Sliding"]),
        ({"pp": 2}, ["Sliding"]),
        ({"tp": 2, "on": "ray:"}, ["Sliding"]),
        ({"tp": 2}, ["Sliding", "LoraTuning(data='examples.jsonl')"]),
        ({}, ["Sliding", "Experts(folder='experts')"]),
        ({}, ["Experts(folder='experts', residency=Sliding())"]),
        ({}, ["Window", "LoraTuning(data='examples.jsonl')"]),
        ({}, ["Window", "Sliding"]),
    ],
    ids=str,
)
def test_what_cannot_stream_is_refused(settings: dict[str, Any], use: list[str]) -> None:
    with pytest.raises(SpecError):
        Plan(use=use, **settings).techniques()


def test_a_policy_that_keeps_what_fits_streams_nothing(checkpoint: Make) -> None:
    with pytest.raises(SpecError, match="does not say how much"):
        opened(checkpoint("llama"), LRU())


def test_without_a_place_for_the_file_streaming_is_refused(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIGHTWORK_HOME", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="must be kept") as error:
        opened(checkpoint("llama"), Sliding())
    assert "LIGHTWORK_HOME" in error.value.fix
