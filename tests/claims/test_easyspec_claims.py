"""What EasySpec's simulated claims are computed with."""

from __future__ import annotations

import pytest

from lightwork.claims import Lab
from lightwork.claims.easyspec import (
    drafting,
    eight_are_no_better,
    layer_parallel_s,
    pass_s,
    tensor_parallel_s,
)


def test_a_pass_by_groups_saves_the_attentions_that_go_together() -> None:
    """Less a gather for each group: 12 pairs save 12 of 32 stages, 6 groups of four 18."""
    pairs, fours = (pass_s(1, n, 1, 1) - pass_s(n, n, 1, 1) for n in (2, 4))
    stage_s = pass_s(1, 1, 1, 1) / 32
    assert pairs / 12 < stage_s
    assert 1.0 < fours / pairs < 18 / 12 + 0.1
    assert pass_s(1, 4, 1, 1) == pytest.approx(pass_s(1, 1, 1, 1))  # others idle
    assert pass_s(2, 2, 1, 1) < layer_parallel_s(2, 5) < layer_parallel_s(2, 2) < pass_s(1, 2, 1, 1)


def test_the_publications_findings_hold_as_priced() -> None:
    assert drafting(Lab()).value == pytest.approx(1.62, rel=0.25)
    assert eight_are_no_better(Lab()).value >= 1.0
    assert tensor_parallel_s(1) <= min(map(tensor_parallel_s, (2, 4, 8)))
