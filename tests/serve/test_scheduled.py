"""The scheduler that a plan gets where it names none."""

from __future__ import annotations

import pytest

from lightwork.models.presets import preset
from lightwork.serve.opening import scheduled
from lightwork.serve.plan import Plan
from lightwork.serve.schedulers.prefill_first import PrefillFirst
from lightwork.serve.schedulers.sarathi import Sarathi

BIG = preset("llama-3-8b")


def test_a_big_model_on_a_cpu_gets_short_steps() -> None:
    plan, reason = scheduled(Plan(use=("Ngram()",)), BIG)
    assert plan.techniques()["scheduler"] == Sarathi(chunk=128)
    assert "proposer" in plan.techniques()
    assert "8030 M parameters" in reason


@pytest.mark.parametrize("plan", [Plan(on="cuda:0"), Plan(pp=2)])
def test_elsewhere_it_is_the_default(plan: Plan) -> None:
    assert scheduled(plan, BIG) == (plan, "the default")


def test_who_chose_one_keeps_it() -> None:
    plan = Plan(use=(PrefillFirst(),))
    assert scheduled(plan, BIG) == (plan, "as asked")
