"""Who carries a step out.

For real on this machine (`local_runner`, `gpu_runner`, `workers`), or on the simulated clock
(`simulated_runner`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Protocol

from lightwork.decode.sampling import Floats, Pick
from lightwork.memory.host import Run
from lightwork.serve.schedulers import Step


class Scores(Protocol):
    """What a forward pass says about the tokens after its rows."""

    def pick(self, chunk: int, node: int, emitted: Sequence[int], top: int | None = None) -> Pick:
        """The choice after a chunk's last known token (node ROOT) or after a draft node.

        emitted: tokens chosen in this step before it, in order. top: tell so many of the most probable
        tokens, rather than as many as the request asks for.
        """
        ...

    def probes(self, chunk: int, nodes: Sequence[int]) -> Floats:
        """The logits of a chunk's draft nodes that are probes, float32 [nodes, V]; [nodes, 0] where there are
        none. To be asked for once, before the next step."""
        ...

    def prompt(self, chunk: int, num_top: int) -> list[Pick]:
        """Log-probabilities of the prompt tokens that follow the chunk's rows, in order."""
        ...


class Runner(Protocol):
    """Runs steps, in the order in which they are asked for.

    depth: how many may be in flight: 1, pipelines as many as they have stages, and one more where a step is
    formed while the one before it computes. feeds: whether such a step may contain tokens that the one before
    is still choosing (`Step.fed`).
    """

    @property
    def depth(self) -> int: ...

    @property
    def feeds(self) -> bool: ...

    @property
    def alive(self) -> bool:
        """False once it can run no more steps."""
        ...

    @property
    def pool(self) -> Any:
        """Where its keys and values are, as runners of the same sort understand it."""
        ...

    def run(self, step: Step) -> Awaitable[Scores]:
        """Where attention reads keys once that sequences share, `step.shared` tells which in the end."""
        ...

    def pull(self, pool: Any, src: Sequence[int], dst: Sequence[int], num_tokens: int) -> Awaitable[object]:
        """Copy the KV of num_tokens tokens from blocks of another engine's pool into this one's."""
        ...

    def swap_out(self, runs: Sequence[Run]) -> Awaitable[object]:
        """Copy blocks to host memory, beside the steps that run."""
        ...

    def swap_in(self, runs: Sequence[Run]) -> Awaitable[object]:
        """Copy blocks back from host memory, likewise."""
        ...


class AroundRunner:
    """A runner that adds something to the steps of another one; all else is that one's."""

    def __init__(self, inner: Runner) -> None:
        self.inner = inner

    @property
    def depth(self) -> int:
        return self.inner.depth

    @property
    def feeds(self) -> bool:
        return self.inner.feeds

    @property
    def alive(self) -> bool:
        return self.inner.alive

    @property
    def pool(self) -> Any:
        return self.inner.pool

    def run(self, step: Step) -> Awaitable[Scores]:
        return self.inner.run(step)

    def pull(self, pool: Any, src: Sequence[int], dst: Sequence[int], num_tokens: int) -> Awaitable[object]:
        return self.inner.pull(pool, src, dst, num_tokens)

    def swap_out(self, runs: Sequence[Run]) -> Awaitable[object]:
        return self.inner.swap_out(runs)

    def swap_in(self, runs: Sequence[Run]) -> Awaitable[object]:
        return self.inner.swap_in(runs)
