"""NanoFlow: a dense batch of constant size, from as many requests as memory will hold when they need most.

Paper:  "NanoFlow: Towards Optimal Large Language Model Serving Throughput", 2024
Idea:   steps are filled to the batch for which nano-operations were laid out, decodes first; a request is
        admitted if the running ones and it fit at their predicted peak, each output being as long as those
        that have ended were on average
Shapes: View -> the inner scheduler's Step, the queue cut off where memory would be short
Cost:   O(running log running) per request looked at
Claims: nanoflow
Differs: the next batch is formed while a step runs only where the plan says so (depth=2); who needs more
        than predicted is preempted, and its KV goes to host memory only with HostMemory
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from lightwork.errors import RangeError
from lightwork.serve.schedulers import Scheduler, Step, View
from lightwork.serve.schedulers._peak import Peak
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Sequence as Seq


@dataclass(slots=True)
class State:
    """running: who ran when last asked. ended, tokens: how many have ended, and their output tokens."""

    inner: Any
    running: list[Seq] = field(default_factory=list)
    ended: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NanoFlow:
    """inner: fills the batch. output: tokens of an output, until one has ended. memory: share of the KV
    blocks that the running may need at their predicted peak."""

    inner: Scheduler[Any] = field(default_factory=lambda: Sarathi(chunk=2048))
    output: int = 256
    memory: float = 0.95

    def __post_init__(self) -> None:
        if self.output < 1 or not 0 < self.memory <= 1:
            raise RangeError(
                f"NanoFlow cannot run output={self.output}, memory={self.memory}",
                expected="output >= 1 and 0 < memory <= 1",
                fix="NanoFlow(output=256, memory=0.95)",
            )

    def init(self) -> State:
        return State(self.inner.init())

    def plan(self, state: State, view: View) -> Step:
        for seq in state.running:
            if seq.finished is not None:
                state.ended += 1
                state.tokens += seq.num_output
        state.running = [seq for seq in view.running if seq.finished is None]
        step = self.inner.plan(state.inner, replace(view, waiting=self._fitting(state, view)))
        state.running += step.admitted
        return step

    def _fitting(self, state: State, view: View) -> Iterator[Seq]:
        """The queue up to where memory would be short; its first, whatever it needs, if nobody runs."""
        mean = state.tokens / state.ended if state.ended else self.output
        peak = Peak(view.blocks.block_size)
        for seq in view.running:
            peak.add(seq.known, _left(seq, mean))
        limit = self.memory * view.blocks.total
        for seq in view.waiting:
            if len(peak) and peak.blocks_with(seq.known, _left(seq, mean)) > limit:
                return
            peak.add(seq.known, _left(seq, mean))
            yield seq


def _left(seq: Seq, mean: float) -> int:
    """Output tokens that a sequence has still to come, as far as can be told."""
    return min(seq.output_left, max(1, round(mean) - seq.num_output))
