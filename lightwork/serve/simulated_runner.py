"""Steps that take as long as a cost model says, on the virtual clock: the same engine predicts a cluster."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import numpy as np

from lightwork.decode.sampling import Floats, Pick
from lightwork.memory.host import Run
from lightwork.memory.kv import KVCache
from lightwork.runtime.effects import Use
from lightwork.runtime.resources import Fifo
from lightwork.serve.embedding import Text, Vector, refused
from lightwork.serve.schedulers import Step
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.shared_keys import shared_keys

Script = Callable[[Seq, int], int]
"""(sequence, position) -> the token there: what the model would have chosen."""


class StepCost(Protocol):
    """How long steps take."""

    def stages(self, step: Step) -> Sequence[float]:
        """Seconds in each pipeline stage, first to last."""
        ...


def dummy_token(seq: Seq, position: int) -> int:
    """Token 0 everywhere: output whose length matters and whose content does not."""
    return 0


ZERO = Pick(0)


class SimulatedRunner:
    """Lets virtual time pass for each step. depth: pipeline stages, and steps in flight.

    A step holds one stage at a time, so up to `depth` steps overlap as they do in a pipeline. ahead_s: what
    of a stage's seconds is the host's, which forms a step while the one before computes, so that one more is
    in flight; None: when that has ended. rank: its first device. link_s(from, to, tokens): seconds to pull
    the KV of so many tokens from one rank's engine to another's. host_s(copies, blocks): seconds to copy so
    many blocks to host memory, or back, in so many pieces. kv: block tables, where attention reads keys once
    that sequences share; else None.
    """

    alive = True

    def __init__(
        self,
        cost: StepCost,
        *,
        depth: int = 1,
        ahead_s: float | None = None,
        script: Script = dummy_token,
        rank: int = 0,
        link_s: Callable[[int, int, int], float] = lambda src, dst, num_tokens: 0.0,
        host_s: Callable[[int, int], float] = lambda copies, blocks: 0.0,
        kv: KVCache | None = None,
    ) -> None:
        self.cost = cost
        self.depth = depth + (ahead_s is not None)
        self.feeds = ahead_s is not None and depth == 1
        self._ahead_s = ahead_s
        self._script = script
        self.rank = rank
        self._link_s = link_s
        self._host_s = host_s
        self._kv = kv
        self._link = Fifo("link")
        self._out, self._in = Fifo("to the host"), Fifo("from the host")
        self._stages = [Fifo(f"stage {i}") for i in range(depth)]
        self._hosts = [Fifo(f"host of stage {i}") for i in range(depth)]

    def run(self, step: Step) -> Coroutine[Any, Any, ScriptedScores]:
        if self._kv is not None:
            step.shared = shared_keys(step, self._kv)
        return self._run(step)

    @property
    def pool(self) -> int:
        """The rank whose memory it is."""
        return self.rank

    async def embed(self, texts: Sequence[Text]) -> Sequence[Vector]:
        raise refused("it is simulated")

    def pull(
        self, pool: int, src: Sequence[int], dst: Sequence[int], num_tokens: int
    ) -> Coroutine[Any, Any, None]:
        """One after another, for as long as link_s says."""
        return _use(self._link, self._link_s(pool, self.rank, num_tokens))

    def swap_out(self, runs: Sequence[Run]) -> Coroutine[Any, Any, None]:
        """One after another; the other direction is free meanwhile."""
        return _use(self._out, self._host_s(len(runs), sum(num for _, _, num in runs)))

    def swap_in(self, runs: Sequence[Run]) -> Coroutine[Any, Any, None]:
        return _use(self._in, self._host_s(len(runs), sum(num for _, _, num in runs)))

    async def _run(self, step: Step) -> ScriptedScores:
        for stage, host, seconds in zip(self._stages, self._hosts, self.cost.stages(step), strict=True):
            if self._ahead_s is None:
                await Use(stage, seconds)
            else:
                await Use(host, self._ahead_s)
                await Use(stage, seconds - self._ahead_s)
        return ScriptedScores(step, self._script)


async def _use(link: Fifo, seconds: float) -> None:
    await Use(link, seconds)


class ScriptedScores:
    """Choices read from a script, so drafts are judged as they would be by a model that wrote that script."""

    __slots__ = ("_script", "_step")

    def __init__(self, step: Step, script: Script) -> None:
        self._step = step
        self._script = script

    def pick(self, chunk: int, node: int, emitted: Sequence[int], top: int | None = None) -> Pick:
        if self._script is dummy_token:
            return ZERO
        seq = self._step.chunks[chunk].seq
        token = self._script(seq, len(seq.tokens) + len(emitted))
        return Pick(token) if top is None else Pick(token, 0.0, ((token, 0.0),))

    def probes(self, chunk: int, nodes: Sequence[int]) -> Floats:
        """A script says nothing of what might be said."""
        return np.zeros((len(nodes), 0), np.float32)

    def prompt(self, chunk: int, num_top: int) -> list[Pick]:
        return []
