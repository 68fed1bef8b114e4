"""What ExFlow's claims are computed with, without their model: routes at random, ratios, prices."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")

from lightwork.claims._gpt_moe import gpt_moe, on_a100s
from lightwork.claims._routes import iid_trace, markov_trace
from lightwork.models.routing import Affinity
from lightwork.parallel.expert_placement import ExpertPlacement
from lightwork.plan.place_experts import distances, place


def test_experts_follow_each_other_as_sharply_as_asked_and_are_equally_busy() -> None:
    local = []
    for sharpness in (0.0, 1.0, 3.0):
        trace = markov_trace(8000, 6, 8, sharpness)
        assert trace.loads() == pytest.approx(np.full((6, 8), 1000), rel=0.15)
        placement = place(Affinity.of(trace.part(0, 4000)), distances(4))
        local.append(placement.local_fraction(trace.part(4000, 8000)))
    assert local == sorted(local)
    assert local[0] == pytest.approx(0.25, abs=0.02)
    assert local[2] > 0.6


def test_a_step_of_many_tokens_takes_the_time_of_its_bytes() -> None:
    """On one node, experts in no order: a token stays with one chance in four, at home or not."""
    num_seqs = 4 * 4096
    trace, in_order = iid_trace(num_seqs, 6, 8), ExpertPlacement.in_order(6, 8, 4)
    both = on_a100s(gpt_moe(8, 6), trace, in_order, num_seqs, context=16)
    assert both.local == pytest.approx(0.25, abs=0.01)
    assert both.expected == pytest.approx(0.5, abs=0.01)
    assert both.exchanging == pytest.approx(0.5, rel=0.1)
