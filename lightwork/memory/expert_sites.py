"""Compute where it lies: the host's processor runs an expert that is in its memory, if copying takes longer.

Paper:  "Fiddler: CPU-GPU Orchestration for Fast Inference of Mixture-of-Experts Models", 2024
Idea:   a copy costs the same for any number of rows, computing on the host grows with them: few rows go to
        the expert, the expert comes to many. Both sides work at the same time, so experts with most rows move
        first, as long as that shortens the longer side
Shapes: rows of each expert [E], those that are there -> those to copy, those to run on the host
Cost:   one price for each expert
Claims: moe_survey

E experts of a layer
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lightwork.cluster.pricing import CostModel
from lightwork.models.spec import ModelSpec
from lightwork.models.work import expert_work


class Split(NamedTuple):
    """moved, hosted: experts that are copied, and that the host computes. seconds: of the layer's experts."""

    moved: tuple[int, ...]
    hosted: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSites:
    """Prices of a layer's experts on a device with memories "memory" and "host", and on the processor there.

    dtype: of weights, and of computing on both.
    """

    spec: ModelSpec
    device: CostModel
    host: CostModel
    dtype: str = "bfloat16"

    def copy_s(self) -> float:
        """Of one expert, whatever its rows are."""
        link = self.device.cluster.device.memory("host")
        return expert_work(self.spec, [1], dtype=self.dtype).bytes / link.read_bytes_per_s + link.latency_s

    def device_s(self, rows: int) -> float:
        return self.device.seconds([expert_work(self.spec, [rows], dtype=self.dtype)])

    def host_s(self, rows: int) -> float:
        return self.host.seconds([expert_work(self.spec, [rows], dtype=self.dtype)])

    def moves(self, rows: int) -> bool:
        """Whether an expert alone is sooner done by copying it."""
        return self.copy_s() + self.device_s(rows) < self.host_s(rows)

    def copied_s(self, rows_E: Sequence[int], here: Collection[int]) -> float:
        """If all that is away is copied, one after another, until the last, of fewest rows, has computed."""
        rows = [n for e, n in enumerate(rows_E) if n and e not in here]
        return len(rows) * self.copy_s() + self.device_s(min(rows)) if rows else 0.0

    def split(self, rows_E: Sequence[int], here: Collection[int]) -> Split:
        """Of the experts that have rows and are not here. Copies follow one another, each hidden behind what
        the device computes meanwhile."""
        away = sorted(
            (e for e, rows in enumerate(rows_E) if rows and e not in here), key=lambda e: -rows_E[e]
        )
        hosted_s = [self.host_s(rows_E[e]) for e in away]
        device_s = sum(self.device_s(rows_E[e]) for e in here if rows_E[e])
        best = Split((), tuple(away), max(device_s, sum(hosted_s)))
        for num, e in enumerate(away, 1):
            last_s = self.device_s(rows_E[e])  # computes when it is there, the others meanwhile
            device_s += last_s
            copied_s = num * self.copy_s() + last_s
            took_s = max(device_s, copied_s, sum(hosted_s[num:]))
            if took_s < best.seconds:
                best = Split(tuple(away[:num]), tuple(away[num:]), took_s)
        return best
