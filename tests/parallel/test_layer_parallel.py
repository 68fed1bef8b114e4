"""A drafter whose groups of layers are divided over processes: drafts of one process, and few exchanges."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the real backend is torch.distributed")

import layer_strategies as strategies

from lightwork.models import resolve
from lightwork.models.held_out import read_held_out
from lightwork.models.layer_plan import LayerPlan
from lightwork.parallel.processes import run_processes
from lightwork.runtime import Trace

pytestmark = pytest.mark.multiproc

K, ROUNDS, RANKS = 4, 3, 2
PLANS = {
    "pairs": LayerPlan.spread(9),
    "threes": LayerPlan.spread(9, 3),
    "one": LayerPlan(num_layers=9, groups=(tuple(range(9)),)),
}


@pytest.mark.parametrize("name", PLANS)
def test_drafts_are_those_of_one_process_with_a_gather_for_each_group_of_several(name: str) -> None:
    plan = PLANS[name]
    prompt = read_held_out(resolve("tiny:llama"))[0].tokens[:40].tolist()
    arguments = (prompt, plan, K, ROUNDS)
    ((tokens, sums),) = run_processes(strategies.drafts, 1, *arguments)
    trace = Trace("real")
    found = run_processes(strategies.drafts, RANKS, *arguments, trace=trace)
    assert [each[0] for each in found] == [tokens] * RANKS
    # Behind an exact pass every rank has the keys and values of one process, behind drafts its share of them.
    assert [each[1][::2] for each in found] == [sums[::2]] * RANKS
    assert all(each[1][i] != sums[i] for each in found for i in range(1, len(sums), 2))
    gathers = [span for span in trace.spans if span.kind == "collective"]
    several = sum(len(group) > 1 for group in plan.groups)
    assert {span.name for span in gathers} == {"all_gather"}
    assert len(gathers) == RANKS * ROUNDS * (K - 1) * several
