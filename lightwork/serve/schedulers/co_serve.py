"""CoServe: inference steps are filled up with slices of a fine-tuning job, as far as latency allows.

Paper:  "FlexLLM: A System for Co-Serving Large Language Model Inference and Parameter-Efficient
        Finetuning", 2024
Idea:   what the inner scheduler plans comes first; then as many tokens of training, forward or back through a
        layer, as keep the step's predicted time within the objective
Shapes: View(training, predict) -> the inner scheduler's Step with slices
Cost:   O(log(tokens x layers)) predictions per step
Claims: flexllm
Differs: on the real engine slices are computed after the step's rows rather than in the same products: a CPU
        is bound by its arithmetic, where sharing a read of the weights saves little
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lightwork.errors import RangeError
from lightwork.serve.schedulers import Scheduler, Step, View
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.training import GRAIN

FIRST, MOST = 32, 1 << 20
"""Tokens times layers in one step: tried first, and never reached however short they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoServe:
    """slo_s: what a step may take, and so the time between two tokens; inf: whole sequences at once.

    fill: share of it after which no slice goes on, since the last one may take longer than predicted. least:
    what training gets of any step, over what its rows take: those that break the promise are not much longer.
    """

    inner: Scheduler[Any] = field(default_factory=Sarathi)
    slo_s: float = 0.05
    fill: float = 0.9
    least: float = 0.05

    def __post_init__(self) -> None:
        if not self.slo_s > 0 or not 0 < self.fill <= 1 or not 0 <= self.least < 1:
            raise RangeError(
                f"CoServe cannot fill fill={self.fill} of steps of slo_s={self.slo_s}, least={self.least}",
                expected="more than 0 seconds, and shares of them",
                fix="CoServe(slo_s=0.05)",
            )

    def init(self) -> Any:
        return self.inner.init()

    def plan(self, state: Any, view: View) -> Step:
        step = self.inner.plan(state, view)
        training, predict = view.training, view.predict
        if training is None or training.finished or predict is None:
            return step
        step.limit_s = limit_s = max(self.fill * self.slo_s, (1 + self.least) * predict(step))

        def within(tokens: int) -> bool:
            return predict(replace(step, slices=training.ahead(tokens, grain=GRAIN))) <= limit_s

        fits, over = 0, FIRST
        while over < MOST and within(over):
            fits, over = over, 2 * over
        while over - fits > max(1, fits // 32):
            middle = (fits + over) // 2
            fits, over = (middle, over) if within(middle) else (fits, middle)
        if not step.chunks:  # nobody waits: at least the smallest slice, however long it takes
            fits = max(1, fits)
        step.slices = training.ahead(fits, grain=GRAIN)
        return step
