"""What an engine tells the trace of its kernel: what happened at a moment, copies, and steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Span
from lightwork.serve.schedulers import Step
from lightwork.serve.sequence import Sequence as Seq


class Notes:
    """name: of the engine, the rank of its spans. Nothing is told where nobody keeps a trace."""

    def __init__(self, kernel: Kernel, name: str) -> None:
        self._kernel = kernel
        self._name = name

    def moment(self, kind: str, seq: Seq, **args: Any) -> None:
        """Something happened to a sequence, now. model: of which it was asked, if not the first."""
        if self._kernel.trace is not None:
            more = {"model": seq.request.model} if seq.request.model else {}
            self.event(kind, str(seq.id), **args, **more)

    def event(self, kind: str, name: str, **args: Any) -> None:
        """Something happened, now."""
        self.lasting(kind, name, self._kernel.now(), **args)

    def lasting(self, kind: str, name: str, begin_s: float, **args: Any) -> None:
        """Something ends now that began earlier."""
        if self._kernel.trace is not None:
            self._kernel.trace.add(Span(self._name, kind, name, begin_s, self._kernel.now(), args=args))

    def step(self, step: Step, number: int, start_s: float, emitted: Sequence[int], **gauges: float) -> None:
        """A step ends now.

        chunks: (sequence, start, count, drafted, tokens emitted). Only where there are any: copied, tokens
        whose KV was copied before it; shared, keys not read, as they were for another sequence;
        and slices of training, (layer, start, count, back).
        """
        if self._kernel.trace is None:
            return
        drafted = [len(draft) for draft in step.drafts] or [0] * len(emitted)
        chunks = [
            (c.seq.id, c.start, c.count, d, e) for c, d, e in zip(step.chunks, drafted, emitted, strict=True)
        ]
        more: dict[str, Any] = {"slices": [*map(tuple, step.slices)]} if step.slices else {}
        if step.copies:
            more["copied"] = sum(copy.num_slots for copy in step.copies)
        if shared := sum(step.shared):
            more["shared"] = shared
        self.lasting("step", f"step {number}", start_s, chunks=chunks, **more, **gauges)
