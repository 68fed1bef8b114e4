"""What DTA-Llama's claims say of StableToolBench follows from the published steps and one fitted latency."""

from __future__ import annotations

from statistics import mean

import pytest

from lightwork.claims import Lab
from lightwork.claims._stable_tool_bench import PUBLISHED, seconds
from lightwork.claims.dta_llama import averages_follow_from_one_profile, faster_than_one_call_at_a_time


def test_published_averages_are_those_of_the_paper():
    ratios = {
        method: mean(PUBLISHED["ReAct"].latency_s) / mean(row.latency_s) for method, row in PUBLISHED.items()
    }
    assert ratios["DTA"] == pytest.approx(1.22, abs=0.01)
    assert ratios["DFSDT"] == pytest.approx(0.37, abs=0.01)
    assert ratios["LLMCompiler"] == pytest.approx(0.57, abs=0.01)


def test_what_is_not_fitted_is_near_too():
    assert averages_follow_from_one_profile(Lab(seed=3)).value <= 0.2
    assert faster_than_one_call_at_a_time(Lab(seed=3)).value == pytest.approx(1.22, rel=0.1)


def test_tools_that_take_longer_make_every_method_slower():
    slow, fast = (mean(seconds("DTA", 1, tool_mean_s)) for tool_mean_s in (20.0, 2.0))
    assert slow > 2 * fast
