"""Steps of a runner on this machine, and slices of training after them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from math import inf
from statistics import fmean
from typing import Any

from lightwork.models.adapters import Adapter
from lightwork.runtime.futures import Task
from lightwork.runtime.kernel import Kernel
from lightwork.serve.notes import Notes
from lightwork.serve.runner import AroundRunner, Runner, Scores
from lightwork.serve.schedulers import Step
from lightwork.serve.simulated_runner import ScriptedScores, dummy_token
from lightwork.serve.training import GRAIN, Slice, Trainer, Training, Update, window
from lightwork.serve.training_cost import TrainingCost

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Epoch:
    """What was trained since an adapter was served last. tokens: of all before."""

    begin_s: float
    tokens: int = 0
    trained_s: float = 0.0
    updates: list[Update] = field(default_factory=list)

    def told(self, now_s: float) -> dict[str, float]:
        """share: of the time, that training took."""
        loss, tokens = fmean(update.loss for update in self.updates), self.updates[-1].tokens - self.tokens
        return {"loss": loss, "tokens": tokens, "share": self.trained_s / max(now_s - self.begin_s, 1e-9)}


class TrainingRunner(AroundRunner):
    """inner: runs the rows of steps. trainer: computes the slices, training knows which, and cost how long
    they take. What a step has no time for after all is left to the next. After an error of the trainer there
    are no more slices; serving goes on. publish: serves what has been trained.
    """

    depth = 1  # the next step is planned when it is known how far this one came
    feeds = False

    def __init__(
        self, kernel: Kernel, inner: Runner, trainer: Trainer, training: Training, cost: TrainingCost
    ) -> None:
        self.kernel = kernel
        super().__init__(inner)
        self.trainer = trainer
        self.training = training
        self.cost = cost
        self.publish: Callable[[Adapter], Coroutine[Any, Any, object]] | None = None
        self._epoch: _Epoch | None = None
        self._end: Task | None = None
        self._notes = Notes(kernel, "training")

    async def run(self, step: Step) -> Scores:
        end_s = self.kernel.now() + step.limit_s if step.chunks else inf  # else nobody waits
        scores = await self.inner.run(step) if step.chunks else ScriptedScores(step, dummy_token)
        if step.slices:
            step.slices = await self._train(step.slices, end_s)
        return scores

    async def _train(self, slices: Sequence[Slice], end_s: float) -> list[Slice]:
        """Returns those that have been computed."""
        done, took_s = list[Slice](), 0.0
        self._epoch = self._epoch or _Epoch(self.kernel.now())
        try:
            for i, piece in enumerate(slices):
                fits = self.cost.fitting(piece, end_s - self.kernel.now(), done)
                count = fits if fits == piece.count else window(piece.count, fits, GRAIN)
                count = 0 if done and count < min(GRAIN, piece.count) else count
                piece, later = piece.split(count)
                if count:
                    done.append(piece)
                    took_s += await self._compute(piece, self._epoch)
                if later.count:
                    self.training.undo([later, *slices[i + 1 :]])
                    break
            self.cost.observe(done, took_s)
        except Exception as error:
            self._failed(error)
        if self.training.finished:
            self.trainer.close()
        return done

    def _failed(self, error: Exception) -> None:
        log.error("training has stopped: %s", error)
        self._notes.event("training failed", type(error).__name__, why=str(error))
        self.training.stop()

    def end(self) -> Task:
        """Train no more, and write what has been trained since it was written last; done when it is."""
        self.training.stop()
        self._end = self._end or self.kernel.spawn(self._keep(), name="end of training")
        return self._end

    async def _keep(self) -> None:
        def keep() -> Update | None:
            try:
                return self.trainer.keep()
            finally:
                self.trainer.close()

        try:
            update = await self.kernel.offload(keep, thread="training")
        except Exception as error:
            self._failed(error)
            return
        if update is not None:
            self._notes.event("keep adapter", str(update.number), loss=update.loss, tokens=update.tokens)

    async def _compute(self, piece: Slice, epoch: _Epoch) -> float:
        """Returns the seconds that it took, without what follows from it."""
        begin_s, cost_s = self.kernel.now(), self.cost.slices_s([piece])
        updates = await self.kernel.offload(self.trainer.run, [piece], cost_s=cost_s, thread="training")
        took_s = self.kernel.now() - begin_s
        epoch.trained_s += took_s
        for update in updates:
            self._notes.event("update", str(update.number), loss=update.loss, tokens=update.tokens)
            epoch.updates.append(update)
        adapter = self.trainer.take()
        if adapter is not None and self.publish is not None:
            await self.publish(adapter)
            self._notes.event("serve adapter", adapter.name, **epoch.told(self.kernel.now()))
            self._epoch = _Epoch(self.kernel.now(), epoch.updates[-1].tokens)
        return took_s
