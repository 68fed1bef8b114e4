"""Whatever the ranges, the order and the split of sums: the forward is the one of operators in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipelines import random_pipeline

from lightwork import models
from lightwork.errors import SpecError
from lightwork.kernels.rows import Rows
from lightwork.models.model import Model
from lightwork.parallel.lanes import Lanes
from lightwork.parallel.nano_forward import NanoForward, dealt
from lightwork.parallel.op_plan import serial_plan
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.plan import Plan, make_engine, make_kv
from lightwork.serve.schedulers.nano_flow import NanoFlow
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Request
from lightwork.serve.simulate import run_load

BLOCK = 4
CHUNKS = [(9, 1), (5, 1), (0, 7), (14, 1), (3, 2), (6, 10)]
"""Of six sequences: known tokens before the step, and rows of it."""
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def lanes() -> Iterator[Lanes]:
    made = Lanes(3)
    yield made
    made.close()


def step_rows(chunks: list[tuple[int, int]], *, drafts: bool = False) -> Rows:
    """A ragged step; sequences have their blocks scattered."""
    num_blocks = max(-(-(start + count) // BLOCK) for start, count in chunks)
    tables = np.random.default_rng(0).permutation(len(chunks) * num_blocks).astype(np.int32)
    tables = tables.reshape(len(chunks), num_blocks)
    seqs = np.repeat(np.arange(len(chunks), dtype=np.int32), [count for _, count in chunks])
    index = np.concatenate([np.arange(start, start + count) for start, count in chunks])
    known = np.array([start + count for start, count in chunks])
    positions, ancestors = index.copy(), np.zeros(len(index), np.uint64)
    if (
        drafts
    ):  # the last four rows of the last sequence: two children of the last known token, a child of each
        known[-1] -= 4
        positions[-4:] = known[-1] + np.array([0, 0, 1, 1])
        ancestors[-4:] = [0b1, 0b10, 0b101, 0b1010]
    return Rows(
        tokens=(7 * index + seqs) % 200,
        positions=positions,
        slots=tables[seqs, index // BLOCK].astype(np.int64) * BLOCK + index % BLOCK,
        seqs=seqs,
        index=index,
        ancestors=ancestors,
        known=known,
        tables=tables,
        scored=np.arange(len(index)),
    )


def both(
    model: Model, carried_out: NanoForward, *, drafts: bool = False
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits, keys and values of a step, in order and by a plan, on the same earlier keys and values."""
    rows = step_rows(CHUNKS, drafts=drafts)
    pools = [model.new_kv(rows.tables.size, BLOCK) for _ in range(2)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pools[0].keys_LTGD.normal_()
        pools[0].values_LTGD.normal_()
    pools[1].keys_LTGD.copy_(pools[0].keys_LTGD)
    pools[1].values_LTGD.copy_(pools[0].values_LTGD)
    in_order = model.forward(rows, pools[0])
    plain, model.hidden = model.hidden, carried_out
    try:
        by_plan = model.forward(rows, pools[1])
    finally:
        model.hidden = plain
    kept = [(getattr(pools[0], name), getattr(pools[1], name)) for name in ("keys_LTGD", "values_LTGD")]
    return [(in_order, by_plan), *kept]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gpt2", "mixtral", "qwen3_moe"])
@pytest.mark.parametrize("tp", [1, 2])
def test_any_plan_gives_the_forward_in_order(checkpoint: Make, family: str, tp: int, lanes: Lanes) -> None:
    model = models.load(str(checkpoint(family)))
    for seed in range(8):
        plan = random_pipeline(seed, sum(count for _, count in CHUNKS), tp)
        for in_order, by_plan in both(model, NanoForward(model, plan, lanes, tp=tp)):
            torch.testing.assert_close(by_plan, in_order, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_draft_trees_are_seen_as_they_are_in_order(checkpoint: Make, family: str, lanes: Lanes) -> None:
    config = {"sliding_window": 6} if family == "mistral" else {}
    model = models.load(str(checkpoint(family, **config)))
    for seed in range(8):
        plan = random_pipeline(seed, sum(count for _, count in CHUNKS))
        for in_order, by_plan in both(model, NanoForward(model, plan, lanes), drafts=True):
            torch.testing.assert_close(by_plan, in_order, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(seed=st.integers(0, 1 << 30), tp=st.sampled_from([1, 2, 4]))
def test_what_differs_is_the_order_of_sums(checkpoint: Make, seed: int, tp: int, lanes: Lanes) -> None:
    """In float64 a thousand million times less than in float32."""
    model = models.load(str(checkpoint("llama")), dtype="float64")
    plan = random_pipeline(seed, sum(count for _, count in CHUNKS), tp)
    for in_order, by_plan in both(model, NanoForward(model, plan, lanes, tp=tp)):
        torch.testing.assert_close(by_plan, in_order, rtol=1e-6, atol=1e-6)
        if in_order.dtype == torch.float64:
            torch.testing.assert_close(by_plan, in_order, rtol=1e-12, atol=1e-12)


def test_rows_are_dealt_evenly_and_keep_the_order_of_their_sequence() -> None:
    rows = step_rows([(9, 1)] * 8 + [(0, 24)])
    order = dealt(rows)
    assert sorted(order) == [*range(32)]
    for quarter in order.reshape(4, 8):
        assert (quarter < 8).sum() == 2
    prompt = order[order >= 8]
    assert (np.diff(prompt) > 0).all()


def test_a_split_that_does_not_divide_is_refused(checkpoint: Make, lanes: Lanes) -> None:
    model = models.load(str(checkpoint("llama")))
    with pytest.raises(SpecError, match="do not split over 3 ranks"):
        NanoForward(model, serial_plan(4, 3), lanes, tp=3)


def test_an_engine_gives_the_same_text(checkpoint: Make, lanes: Lanes) -> None:
    """Steps of fewer rows, too, to which a plan for thirty-two is fitted."""
    prompts = [tuple((3 * i + 7 * n) % 250 for i in range(5 + 4 * n)) for n in range(8)]
    requests = [Request(prompt=p, max_tokens=12) for p in prompts]
    texts = [_texts(checkpoint("llama"), requests, by_plan) for by_plan in (None, lanes)]
    assert texts[0] == texts[1]
    assert all(len(text) == len(prompt) + 12 for text, prompt in zip(texts[0], prompts, strict=True))


def _texts(folder: Path, requests: list[Request], lanes: Lanes | None) -> list[list[int]]:
    model = models.load(str(folder))
    if lanes is not None:
        model.hidden = NanoForward(model, random_pipeline(5, 32), lanes)
    kernel = Kernel(WallClock())
    plan = Plan(use=(NanoFlow(inner=Sarathi(chunk=32)),))
    kv = make_kv(plan, 24, 16, 0)
    engine = make_engine(plan, kernel, kv, LocalRunner(kernel, model, kv), 200, 256)
    return [seq.tokens for seq in run_load(engine, [0.0] * len(requests), requests)]
