"""Lengths drawn from the published statistics of recorded traces, which are not shipped.

Paper:  "Splitwise: Efficient Generative LLM Inference Using Phase Splitting", 2024 (the Azure traces of
        2023); "NanoFlow: Towards Optimal Large Language Model Serving Throughput", 2024 (its cuts of
        ShareGPT and LMSYS)
Idea:   between the known quantiles the logarithm of a length is uniform; the shortest is where the mean comes
        out as published. Where only mean and deviation are known: lognormal with both
Shapes: (rng, num) -> num pairs of lengths
Cost:   O(num)
Claims: fastgen
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt
from typing import Literal, NamedTuple

import numpy as np

from lightwork.errors import RangeError
from lightwork.serve.lengths import Lengths, bounded

PROBABILITIES = (0.5, 0.9, 0.99)


class Quantiles(NamedTuple):
    """The mean, and the lengths at 50, 90 and 99 percent."""

    mean: float
    p50: float
    p90: float
    p99: float

    def draw(self, rng: np.random.Generator, num: int) -> np.ndarray:
        points = (0.0, *PROBABILITIES, 1.0)
        logs = np.log([self._shortest(), self.p50, self.p90, self.p99, self.p99])
        return np.exp(np.interp(rng.random(num), points, logs))

    def _shortest(self) -> float:
        """Where the lower half must begin for the mean to be right; between 1 and the median."""
        above = 0.4 * _mean(self.p50, self.p90) + 0.09 * _mean(self.p90, self.p99) + 0.01 * self.p99
        low, high = 1.0, self.p50
        for _ in range(60):
            middle = (low + high) / 2
            if 0.5 * _mean(middle, self.p50) + above < self.mean:
                low = middle
            else:
                high = middle
        return low


class Moments(NamedTuple):
    """Mean and standard deviation."""

    mean: float
    deviation: float

    def draw(self, rng: np.random.Generator, num: int) -> np.ndarray:
        sigma = sqrt(log(1 + (self.deviation / self.mean) ** 2))
        return self.mean * np.exp(sigma * rng.standard_normal(num) - sigma * sigma / 2)


TRACES: dict[str, tuple[Quantiles | Moments, Quantiles | Moments]] = {
    "azure-conversation": (Quantiles(1155, 1020, 2734, 4142), Quantiles(211, 129, 424, 601)),
    "azure-code": (Quantiles(2048, 1469, 5186, 7436), Quantiles(28, 13, 55, 249)),
    "arxiv": (Quantiles(2588, 2730, 3702, 3933), Quantiles(291, 167, 372, 3270)),
    "lmsys": (Moments(102, 169), Moments(222, 210)),
    "sharegpt": (Moments(246, 547), Moments(322, 244)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """trace: whose statistics. max_len: tokens of a prompt and its output together."""

    trace: Literal["azure-conversation", "azure-code", "arxiv", "lmsys", "sharegpt"] = "azure-conversation"
    max_len: int = 1 << 20

    def __post_init__(self) -> None:
        if self.trace not in TRACES:
            raise RangeError(f"no trace {self.trace!r}", expected=", ".join(TRACES), fix="Published()")
        if self.max_len < 2:
            raise RangeError(f"max_len is {self.max_len}", expected="at least 2", fix="leave max_len out")

    def draw(self, rng: np.random.Generator, num: int) -> Lengths:
        prompt, output = TRACES[self.trace]
        return bounded(prompt.draw(rng, num), output.draw(rng, num), self.max_len)


def _mean(low: float, high: float) -> float:
    """Of a length whose logarithm is uniform between two."""
    return high if low >= high else (high - low) / log(high / low)
