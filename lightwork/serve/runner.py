"""Who carries a step out.

For real on this machine (`local_runner`, `gpu_runner`), or on the simulated clock (`simulated_runner`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

from lightwork.decode.sampling import Pick
from lightwork.serve.schedulers import Step


class Scores(Protocol):
    """What a forward pass says about the tokens after its rows."""

    def pick(self, chunk: int, node: int, emitted: Sequence[int]) -> Pick:
        """The choice after a chunk's last known token (node ROOT) or after a draft node.

        emitted: tokens chosen in this step before it, in order.
        """
        ...

    def prompt(self, chunk: int, num_top: int) -> list[Pick]:
        """Log-probabilities of the prompt tokens that follow the chunk's rows, in order."""
        ...


class Runner(Protocol):
    """Runs steps. depth: how many may be in flight (1; pipelines take as many as they have stages)."""

    @property
    def depth(self) -> int: ...

    def run(self, step: Step) -> Awaitable[Scores]: ...

    def pull(
        self, other: Runner, src: Sequence[int], dst: Sequence[int], num_tokens: int
    ) -> Awaitable[object]:
        """Copy the KV of num_tokens tokens from another engine's blocks, in order, into this one's."""
        ...
