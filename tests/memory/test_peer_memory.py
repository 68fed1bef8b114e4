"""A model whose layers are partly with another process: the same outputs, in the memory that is allowed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lightwork import models
from lightwork.errors import CapacityError, LightworkError
from lightwork.kernels.rows import Rows
from lightwork.memory.kv import KVCache
from lightwork.memory.peers import Arena, Pooled
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.plan import Plan, make_engine
from lightwork.serve.sequence import Request
from lightwork.serve.simulate import run_load
from lightwork.testing import FAMILIES, text_logits

pytestmark = pytest.mark.multiproc
Make = Callable[..., Path]
TEXT = np.random.default_rng(0).integers(0, 320, 60).tolist()


def logits_of(pooled: Pooled) -> np.ndarray:
    rows = Rows.of_text(np.array(TEXT, np.int64), len(TEXT))
    return pooled.logits(rows, pooled.new_kv(1, len(TEXT)))


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_equal_pass_after_pass(checkpoint: Make, family: str) -> None:
    folder = checkpoint(family, **{"n_layer" if family == "gpt2" else "num_hidden_layers": 6})
    whole = models.load(str(folder))
    allowed = int(0.8 * whole.nbytes)
    pooled = Pooled(str(folder), allowed)
    try:
        assert len(pooled.away) >= 3
        assert pooled.arena.used_bytes <= allowed < pooled.nbytes == whole.nbytes
        for _ in range(5):
            np.testing.assert_array_equal(logits_of(pooled), text_logits(whole, TEXT))
    finally:
        pooled.close()


def test_an_engine_serves_with_it(checkpoint: Make) -> None:
    folder = str(checkpoint("llama", num_hidden_layers=6))
    load = [Request(prompt=tuple(TEXT[i : i + 20]), max_tokens=12) for i in range(6)]
    whole = models.load(folder)
    texts = []
    for model in (whole, Pooled(folder, int(0.8 * whole.nbytes))):
        kernel = Kernel(WallClock())
        kv = KVCache(64, 16)
        engine = make_engine(Plan(), kernel, kv, LocalRunner(kernel, model, kv), max_len=200, vocab_size=320)
        texts.append([seq.tokens for seq in run_load(engine, [0.0] * len(load), load)])
        model.close()
    assert texts[0] == texts[1]


def test_with_room_for_all_there_is_no_peer(checkpoint: Make) -> None:
    whole = models.load(str(checkpoint("llama")))
    pooled = Pooled(str(checkpoint("llama")), whole.nbytes)
    assert (pooled.away, pooled.arena.used_bytes) == ([], whole.nbytes)
    np.testing.assert_array_equal(logits_of(pooled), text_logits(whole, TEXT))
    pooled.close()


def test_what_cannot_fit_is_refused(checkpoint: Make) -> None:
    with pytest.raises(CapacityError, match="1000 bytes for weights") as error:
        Pooled(str(checkpoint("llama")), 1000)
    assert "2 slots" in error.value.expected
    arena = Arena(64)
    arena.take(4, 4)
    with pytest.raises(CapacityError, match="4 bytes of weights, and 0 are free"):
        arena.take(1)


def test_a_peer_that_is_lost_is_told_at_once_and_ever_after(checkpoint: Make) -> None:
    folder = str(checkpoint("llama", num_hidden_layers=6))
    pooled = Pooled(folder, int(0.8 * models.load(folder).nbytes))
    logits_of(pooled)
    assert pooled._peer is not None
    os.kill(pooled._peer.process.pid, signal.SIGKILL)

    def three_passes() -> None:
        """What was fetched before is still there for the first."""
        for _ in range(3):
            logits_of(pooled)

    for _ in range(2):
        with pytest.raises(LightworkError, match=r"the peer that keeps layer \d was lost"):
            three_passes()
    pooled.close()
