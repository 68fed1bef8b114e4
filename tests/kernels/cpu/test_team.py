"""Threads that run a step together: they always end, agree, and leave nothing behind."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

from steps import Part, Steps

from lightwork import models
from lightwork.models.compiled import CompiledModel
from lightwork.models.precisions.quant import Quant
from lightwork.models.precisions.stored import Stored

Make = Callable[..., Path]
PARTS = [Part(0, 20, 1), Part(1, 7, 2, (-1, 0))]


OTHERS: set[threading.Thread] = set()
"""Of models that other tests keep."""


def compute_threads() -> int:
    return sum(t.name.startswith("compute") and t not in OTHERS for t in threading.enumerate())


@pytest.fixture(autouse=True)
def others() -> None:
    gc.collect()
    OTHERS.clear()
    OTHERS.update(threading.enumerate())


@pytest.fixture
def load(checkpoint: Make) -> Iterator[Callable[[], CompiledModel]]:
    folder = str(checkpoint("llama"))
    yield lambda: models.load_compiled(folder, precision=Stored())
    gc.collect()
    assert compute_threads() == 0


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_thousands_of_tiny_steps_end_and_agree(load: Callable[[], CompiledModel], threads: int) -> None:
    model = load()
    model.set_threads(1)
    steps = Steps(model)
    (first, second) = steps.after(PARTS)
    rows = steps.rows(PARTS)
    right = np.concatenate([first, second])
    model.set_threads(threads)
    for _ in range(1000):
        np.testing.assert_array_equal(model.logits(rows, steps.pool), right)
    model.close()


def test_helpers_that_fell_asleep_wake_up(load: Callable[[], CompiledModel]) -> None:
    model = load()
    model.set_threads(3)
    steps = Steps(model)
    right = np.concatenate(steps.after(PARTS))
    waits = threading.Event()
    for pause_s in (0.0, 0.001, 0.05, 0.2):
        waits.wait(pause_s)
        np.testing.assert_array_equal(np.concatenate(steps.run(PARTS)), right)
    model.close()


def test_teams_are_employed_and_dismissed_again_and_again(load: Callable[[], CompiledModel]) -> None:
    model = load()
    steps = Steps(model)
    right = np.concatenate(steps.after(PARTS))
    for i in range(60):
        model.set_threads(1 + i % 4)
        assert compute_threads() == i % 4
        if i % 3:
            np.testing.assert_array_equal(np.concatenate(steps.run(PARTS)), right)
    model.close()
    assert compute_threads() == 0


def test_a_closed_model_still_computes_on_the_callers_thread(load: Callable[[], CompiledModel]) -> None:
    model = load()
    model.set_threads(3)
    steps = Steps(model)
    right = np.concatenate(steps.after(PARTS))
    model.close()
    model.close()
    np.testing.assert_array_equal(np.concatenate(steps.run(PARTS)), right)
    model.set_threads(2)
    np.testing.assert_array_equal(np.concatenate(steps.run(PARTS)), right)
    model.close()


def test_a_model_that_is_dropped_takes_its_threads_along(load: Callable[[], CompiledModel]) -> None:
    for _ in range(3):
        model = load()
        model.set_threads(3)
        Steps(model).after(PARTS)
        assert compute_threads() == 2
        del model
        gc.collect()
        assert compute_threads() == 0


def test_two_models_in_one_process_do_not_disturb_each_other(checkpoint: Make) -> None:
    stored = models.load_compiled(str(checkpoint("llama")), precision=Stored())
    quantised = models.load_compiled(str(checkpoint("mixtral")), precision=Quant(bits=8, group=32))
    both = [Steps(stored), Steps(quantised)]
    for steps in both:
        steps.model.set_threads(2)
    right = [np.concatenate(steps.after(PARTS)) for steps in both]
    got: list[list[bool]] = [[], []]

    def repeat(which: int) -> None:
        for _ in range(100):
            again = np.concatenate(both[which].run(PARTS))
            got[which].append(np.array_equal(again, right[which]))

    workers = [threading.Thread(target=repeat, args=(which,)) for which in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert got == [[True] * 100] * 2
    for steps in both:
        steps.model.close()


@pytest.mark.multiproc
@pytest.mark.parametrize("ending", ["raise SystemExit(3)", "1 / 0"])
def test_a_process_with_helpers_ends(checkpoint: Make, ending: str) -> None:
    program = (
        "from lightwork import models\n"
        "from lightwork.models.precisions.stored import Stored\n"
        f"model = models.load_compiled({str(checkpoint('llama'))!r}, precision=Stored())\n"
        "model.set_threads(3)\n"
        "model.warm_up()\n"
        f"{ending}\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == {"r": 3, "1": 1}[ending[0]]
    last = done.stderr.strip().splitlines()[-1:]
    assert last == (["ZeroDivisionError: division by zero"] if ending == "1 / 0" else [])
