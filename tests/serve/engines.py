"""Engines for tests, on the virtual clock, whose model is a function of the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightwork.memory.kv import KVCache
from lightwork.memory.layouts import Layout
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.cost import with_forming
from lightwork.serve.engine import Engine
from lightwork.serve.schedulers import Scheduler, Step
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Limits, Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulated_runner import SimulatedRunner


class UnitCost:
    """Every row takes a millisecond."""

    def __init__(self, stages: int = 1) -> None:
        self._stages = stages

    def stages(self, step: Step) -> Sequence[float]:
        return with_forming([1e-3 * step.num_rows / self._stages] * self._stages, step)


def next_token(seq: Seq, position: int) -> int:
    """A fixed function of the prompt and the position, with repetitions for n-grams to find."""
    return (sum(seq.tokens[: seq.prompt_len]) * 7 + position % 5) % 50


def make_engine(
    scheduler: Scheduler[Any] | None = None,
    *,
    blocks: int = 64,
    block_size: int = 4,
    depth: int = 1,
    ahead_s: float | None = None,
    prefix_cache: bool = True,
    layout: Layout | None = None,
    max_seqs: int = 128,
    max_waiting: int = 4096,
    kernel: Kernel | None = None,
    **parts: Any,
) -> Engine:
    kernel = kernel or Kernel(trace=Trace("test"))
    kv = KVCache(blocks, block_size, prefix_cache=prefix_cache, layout=layout)
    runner = SimulatedRunner(
        UnitCost(depth),
        depth=depth,
        ahead_s=ahead_s,
        script=next_token,
        link_s=lambda src, dst, tokens: 1e-4 * tokens,
    )
    limits = Limits(max_len=10_000, max_seqs=max_seqs, max_waiting=max_waiting)
    return Engine(kernel, runner, kv, scheduler or Sarathi(), limits=limits, vocab_size=50, **parts)


def request(prompt: Sequence[int] = (1, 2, 3), max_tokens: int = 5, **settings: Any) -> Request:
    return Request(prompt=tuple(prompt), max_tokens=max_tokens, **settings)


def expected(req: Request, num_tokens: int | None = None) -> list[int]:
    """The output plain decoding gives."""
    n = req.max_tokens if num_tokens is None else num_tokens
    total = sum(req.prompt) * 7
    return [(total + (len(req.prompt) + i) % 5) % 50 for i in range(n)]
