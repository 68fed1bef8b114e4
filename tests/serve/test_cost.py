"""Prices of steps: whoever passes a layer shares its product, and a prefix that is shared is read once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightwork.cluster import CostModel, parse_place
from lightwork.models import read_shape
from lightwork.models.work import products
from lightwork.serve.cost import ClusterCost
from lightwork.serve.schedulers import Chunk, Step
from lightwork.serve.sequence import Request, begin
from lightwork.serve.training import Slice

SPEC = read_shape("shape:llama-3-8b")
COSTS = CostModel(parse_place("sim:a100x4"))


def step(num: int, *slices: Slice) -> Step:
    """num sequences that decode at 200 tokens, beside training."""
    requests = (Request(prompt=(1,) * 201, max_tokens=9) for _ in range(num))
    seqs = [begin(request, None, iter([i]), 0.0)[0] for i, request in enumerate(requests)]
    return Step(chunks=[Chunk(seq, 200, 1) for seq in seqs], slices=slices)


def seconds(of: Step, tp: int = 1) -> float:
    return sum(ClusterCost(SPEC, COSTS, dtype="bfloat16", tp=tp, step_s=0.0).stages(of))


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("tp", [1, 4])
def test_training_that_fills_a_tile_of_the_step_costs_no_product(back: bool, tp: int) -> None:
    """100 rows are computed as 128: of 28 more only what is theirs alone is paid."""
    piece = Slice(3, 0, 28, back)
    beside = seconds(step(100, piece), tp) - seconds(step(100), tp)
    alone = seconds(step(0, piece), tp)
    product = COSTS.seconds([products(SPEC, 28, 1, dtype="bfloat16", tp=tp)])
    assert 0 < beside < alone - 0.8 * product


def test_training_in_other_layers_is_added() -> None:
    pieces = [Slice(layer, 0, 512) for layer in (1, 2)]
    one, other, both = (seconds(step(0, *some)) for some in (pieces[:1], pieces[1:], pieces))
    assert both == pytest.approx(one + other)


def test_the_rows_of_a_window_may_be_divided_at_will() -> None:
    whole, parts = Slice(1, 0, 512), (Slice(1, 0, 300), Slice(1, 300, 212))
    assert seconds(step(64, whole)) == pytest.approx(seconds(step(64, *parts)), rel=0.01)


def test_a_prefix_read_once_saves_its_bytes() -> None:
    plain = step(64)
    saved = 63 * 160 * SPEC.kv_bytes_per_token("bfloat16") / COSTS.cluster.device.memory().read_bytes_per_s
    shared = replace(plain, shared=[0] + [160] * 63)
    assert seconds(plain) - seconds(shared) == pytest.approx(saved, rel=1e-6)
