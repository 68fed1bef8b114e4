"""How long steps of so many rows take on this machine, measured once before serving.

What is decided by it while serving never depends on a clock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightwork.cluster.devices import Curve, interpolate
from lightwork.decode.proposers import Draft, Effort, Text
from lightwork.decode.sampling import Pick
from lightwork.decode.verifiers import Verdict
from lightwork.memory.kv import KVCache
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.engine import Engine
from lightwork.serve.loads import Arrival
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.replay import samples
from lightwork.serve.schedulers import Step
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import FinishReason, Limits
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import SyntheticRequests, run_load

SIZES = (1, 2, 4, 8, 16, 32, 64)
PROMPT, OUTPUT = 2, 8
LONG_S = 0.02
"""A step of one row that takes longer is measured at every other size and half as often: it varies less, and
serving begins the sooner."""


@dataclass(frozen=True, slots=True)
class RowTimes:
    """curve: (rows, seconds) of as many sequences. single: of one, with all rows but one in a draft; () where
    a sequence takes no longer than a row. Neither ever falls; both go on as they ended.
    """

    curve: Curve
    single: Curve = ()

    @classmethod
    def told(cls, told: Mapping[str, Any]) -> RowTimes:
        """From what `asdict` made of it, and a file of JSON kept."""
        return cls(**{name: tuple(map(tuple, curve)) for name, curve in told.items()})

    def predict(self, step: Step) -> float:
        rows, num = step.num_rows, len(step.chunks)
        if not self.single:
            return _on(self.curve, rows)
        seconds = _on(self.curve, num)
        if rows > num:
            seconds += _on(self.single, rows) - _on(self.single, num)
        if num > 1 and step.drafts:  # the host forms, judges and rolls back the draft of each
            seconds += sum(map(bool, step.drafts)) * max(0.0, _on(self.single, 2) - _on(self.curve, 2))
        return seconds


def _on(curve: Curve, rows: float) -> float:
    (before, before_s), (most, most_s) = curve[-2:]
    if rows <= most:
        return interpolate(curve, rows)
    return most_s + (rows - most) * (most_s - before_s) / (most - before)


def measure_rows(model: Any, block_size: int) -> RowTimes:
    """As many requests decode together as there are rows, then one with drafts; takes as long as a hundred
    steps, and as forty where those are long.

    model: a `Model` or a `CompiledModel`.
    """
    first_s = _decode_s(model, block_size, 1)  # what is slow the first time only
    long = first_s > LONG_S
    sizes, output = (SIZES[2::2], OUTPUT // 2) if long else (SIZES[1:], OUTPUT)
    curve = [(1.0, _decode_s(model, block_size, 1, output=output))]
    for num in sizes:
        curve.append((num, max(_decode_s(model, block_size, num, output=output), curve[-1][1])))
    single = curve[:1]
    for num in sizes:
        single.append((num, max(_decode_s(model, block_size, 1, num - 1, output=output), single[-1][1])))
    return RowTimes(tuple(curve), tuple(single))


def _decode_s(model: Any, block_size: int, num: int, drafted: int = 0, output: int = OUTPUT) -> float:
    """Seconds of a step. num: requests that decode. drafted: rows of the draft of each. output: steps."""
    kernel = Kernel(WallClock(), trace=Trace("rows"))
    length, vocab_size = PROMPT + output + drafted, model.spec.vocab_size
    kv = KVCache(num * (1 + length // block_size), block_size, prefix_cache=False)
    engine = Engine(
        kernel,
        LocalRunner(kernel, model, kv),
        kv,
        Sarathi(),
        limits=Limits(max_len=length),
        proposer=_Blank(drafted) if drafted else None,
        predict=lambda step: 1.0,
    )
    arrivals = [Arrival(0.0, PROMPT, length - PROMPT)] * num
    requests = SyntheticRequests(arrivals, vocab_size, np.random.default_rng(0))
    run_load(engine, arrivals, requests, [_Enough(output)] * num)
    assert kernel.trace is not None
    return _median_s(kernel.trace.spans, num * (1 + drafted), num)


def _median_s(spans: Iterable[Span], rows: int, num: int) -> float:
    took = defaultdict(list)
    for features, seconds in samples(spans):
        took[features["rows"], features["sequences"]].append(seconds)
    return typical(took[rows, num])


def typical(took_s: Sequence[float]) -> float:
    """The lower quartile of seconds: what else the machine does makes them longer, never shorter."""
    return sorted(took_s)[len(took_s) // 4]


@dataclass(frozen=True, slots=True)
class _Enough:
    """Ends a text before it has no room for a whole draft."""

    output: int

    def prompt(self, seq: Seq, picks: Sequence[Pick]) -> None:
        """Not asked for."""

    def tokens(self, seq: Seq, picks: Sequence[Pick]) -> int | None:
        return len(picks) if seq.num_output >= self.output else None

    def finish(self, seq: Seq, reason: FinishReason, error: Exception | None) -> None:
        if error is not None:
            raise error


@dataclass(frozen=True, slots=True)
class _Blank:
    """Drafts of k rows, each said to be good; few ever are."""

    k: int

    @property
    def effort(self) -> Effort:
        return Effort()

    def gain(self, text: Text, rate: float) -> Sequence[float]:
        return (1.0,) * self.k

    def propose(self, texts: Sequence[Text], rows: Sequence[int]) -> list[Draft]:
        return [Draft.chain([0] * num) for num in rows]

    def accept(self, texts: Sequence[Text], verdicts: Sequence[Verdict]) -> None:
        """Nothing to learn."""

    def forget(self, seq_id: int) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing runs."""
