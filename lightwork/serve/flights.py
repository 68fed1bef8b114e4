"""Steps in flight, and sequences that are planned on before theirs have ended.

A runner carries steps out in order. So the tokens of a sequence count as computed once a step with them is
planned; and where a runner feeds a step with what the one before is choosing, the next token counts as known.
A scheduler sees the engine as it will be, but for what that token is. If it ends the text, one row too many
was computed, and nobody is told.
"""

from __future__ import annotations

from collections.abc import Callable

from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel
from lightwork.serve.runner import Runner
from lightwork.serve.schedulers import Step
from lightwork.serve.sequence import Sequence as Seq


class Flights:
    """As a number, how many steps are in flight."""

    def __init__(self, kernel: Kernel, runner: Runner) -> None:
        self._kernel = kernel
        self._runner = runner
        self._ends: dict[int, Future] = {}
        self._last: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def enter(self, number: int) -> None:
        self._ends[number] = self._kernel.future(f"step {number}")

    def leave(self, number: int) -> None:
        self._ends.pop(number).set()

    def writing(self) -> list[Future]:
        """Steps that may use blocks which somebody else has by now; without feeding, all hold theirs."""
        return [*self._ends.values()] if self._runner.feeds else []

    def take(self, step: Step, goes_on: Callable[[Seq], bool]) -> None:
        """A step is planned: its sequences move on, or wait for it. goes_on: who does not wait for a
        token."""
        for seq, start, count in step.chunks:
            seq.computed = start + count
            seq.busy += 1
        if not step.chunks or not self._runner.feeds:
            return
        for i, chunk in enumerate(step.chunks):
            if chunk.seq.ahead:
                step.fed.append((i, self._last[chunk.seq.id]))
            self._move_on(step, i, chunk.seq, goes_on)
        self._last = {chunk.seq.id: i for i, chunk in enumerate(step.chunks)}

    def _move_on(self, step: Step, i: int, seq: Seq, goes_on: Callable[[Seq], bool]) -> None:
        chooses = seq.computed == step.known[i]
        if chooses and not goes_on(seq):
            return
        step.ahead[i] = seq.num_preempted
        seq.ahead += chooses
        seq.busy -= 1
        seq.flying += 1

    def give(self, step: Step, i: int) -> bool:
        """A step has ended: its sequences wait for it no longer. Returns whether the KV of a chunk is there
        still: not if its sequence was preempted meanwhile."""
        seq = step.chunks[i].seq
        before = step.ahead.get(i) if step.ahead else None
        if before is not None and before != seq.num_preempted:
            return False
        if before is None or seq.finished is not None:
            seq.busy -= 1
        else:
            seq.flying -= 1
        return True
