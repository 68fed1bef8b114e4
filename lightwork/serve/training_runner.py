"""Steps of a runner on this machine, and slices of training after them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from lightwork.memory.host import Run
from lightwork.models.adapters import Adapter
from lightwork.runtime.kernel import Kernel
from lightwork.serve.notes import Notes
from lightwork.serve.runner import Runner, Scores
from lightwork.serve.schedulers import Step
from lightwork.serve.simulated_runner import ScriptedScores, dummy_token
from lightwork.serve.training import Trainer, Training

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Epoch:
    """What was trained since an adapter was served last. tokens: of all epochs before."""

    begin_s: float
    tokens: int
    trained_s: float = 0.0
    losses: list[float] = field(default_factory=list)


class TrainingRunner:
    """inner: runs the rows of steps. trainer: computes the slices, training knows which. After an error
    of the trainer there are no more; serving goes on. publish: serves what has been trained.
    """

    def __init__(self, kernel: Kernel, inner: Runner, trainer: Trainer, training: Training) -> None:
        self.kernel = kernel
        self.inner = inner
        self.trainer = trainer
        self.training = training
        self.depth = inner.depth
        self.publish: Callable[[Adapter], Coroutine[Any, Any, object]] | None = None
        self._epoch: _Epoch | None = None
        self._notes = Notes(kernel, "training")

    @property
    def alive(self) -> bool:
        return self.inner.alive

    @property
    def pool(self) -> Any:
        return self.inner.pool

    async def run(self, step: Step) -> Scores:
        scores = await self.inner.run(step) if step.chunks else ScriptedScores(step, dummy_token)
        if step.slices:
            await self._train(step)
        return scores

    async def _train(self, step: Step) -> None:
        begin_s = self.kernel.now()
        epoch = self._epoch = self._epoch or _Epoch(begin_s, 0)
        tokens = epoch.tokens
        try:
            for update in await self.kernel.offload(self.trainer.run, step.slices, thread="training"):
                self._notes.event("update", str(update.number), loss=update.loss, tokens=update.tokens)
                epoch.losses.append(update.loss)
                tokens = update.tokens
            epoch.trained_s += self.kernel.now() - begin_s
            adapter = self.trainer.take()
            if adapter is not None and self.publish is not None:
                await self._serve(adapter, epoch, tokens)
        except Exception as error:
            log.error("training has stopped: %s", error)
            self._notes.event("training failed", type(error).__name__, why=str(error))
            self.training.stop()
        if self.training.finished:
            self.trainer.close()

    async def _serve(self, adapter: Adapter, epoch: _Epoch, tokens: int) -> None:
        """An epoch is over. share: of the time since the last one that training took."""
        assert self.publish is not None
        now_s = self.kernel.now()
        await self.publish(adapter)
        self._notes.event(
            "serve adapter",
            adapter.name,
            loss=fmean(epoch.losses),
            tokens=tokens - epoch.tokens,
            share=epoch.trained_s / max(now_s - epoch.begin_s, 1e-9),
        )
        self._epoch = _Epoch(now_s, tokens)

    def pull(self, pool: Any, src: Sequence[int], dst: Sequence[int], num_tokens: int) -> Awaitable[object]:
        return self.inner.pull(pool, src, dst, num_tokens)

    def swap_out(self, runs: Sequence[Run]) -> Awaitable[object]:
        return self.inner.swap_out(runs)

    def swap_in(self, runs: Sequence[Run]) -> Awaitable[object]:
        return self.inner.swap_in(runs)
