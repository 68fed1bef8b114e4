"""Steps of a model whose weights come and go: a runner around any other, which waits until they are there."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from lightwork.errors import InvariantError
from lightwork.memory.residents import Residents
from lightwork.runtime.effects import Use
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.resources import Fifo
from lightwork.serve.notes import Notes
from lightwork.serve.runner import AroundRunner, Runner, Scores
from lightwork.serve.schedulers import Step

if TYPE_CHECKING:
    from lightwork.models.experts import ExpertWeights

Copy = Callable[[str, int], Awaitable[object]]
"""(name, slot): brings an expert's weights."""

log = logging.getLogger(__name__)


class ExpertRunner(AroundRunner):
    """Runs one step at a time, all of whose rows are of one model.

    copy: one runs at a time. compute_from(slot): the next steps are of that one. prefetch: whether weights
    are copied before their turn. In the trace, "load" is a copy, and "switch" how long a step of another
    model than the last one waited.
    """

    depth = 1
    feeds = False

    def __init__(
        self,
        kernel: Kernel,
        inner: Runner,
        residents: Residents,
        copy: Copy,
        compute_from: Callable[[int], object] = lambda slot: None,
        *,
        prefetch: bool = True,
        name: str = "engine",
    ) -> None:
        super().__init__(inner)
        self.residents = residents
        self.prefetch = prefetch
        self._kernel = kernel
        self._copy = copy
        self._compute_from = compute_from
        self._notes = Notes(kernel, name)
        self._coming: Future | None = None

    def run(self, step: Step) -> Coroutine[Any, Any, Scores]:
        return self._run(step)

    async def _run(self, step: Step) -> Scores:
        models = {chunk.seq.request.model for chunk in step.chunks}
        if len(models) != 1:
            raise InvariantError(
                f"a step is of {len(models)} models", expected="one", fix="a scheduler inside ByModel"
            )
        model = models.pop()
        if model not in self.residents.held:
            await self._switch(model)
        ahead = self.residents.ahead[:1] if step.next_model is None else (step.next_model,)
        for name in ahead if self.prefetch and self._coming is None else ():
            if name not in self.residents:
                self._begin(name)
        return await self.inner.run(step)

    async def _switch(self, model: str) -> None:
        begin_s = self._kernel.now()
        held, self.residents.held = self.residents.held, frozenset[str]()
        try:
            if self._coming is not None:
                await self._coming
            self.residents.use(model)
            if model not in self.residents:
                coming = self._begin(model)
                assert coming is not None, "no other copy runs and no other expert is held"
                failed = await coming
                if failed is not None:
                    raise failed
        except BaseException:
            self.residents.held = frozenset()
            raise
        self._compute_from(self.residents.slot(model))
        self._notes.lasting("switch", model, begin_s, before=next(iter(held), None))

    def _begin(self, name: str) -> Future | None:
        """Begin to copy, if there is a place: resolves to what went wrong, or None."""
        slot = self.residents.begin(name)
        if slot is None:
            return None
        self._coming = self._kernel.future(f"the weights of {name!r}")
        self._kernel.spawn(self._bring(name, slot, self._coming), name=f"load {name}")
        return self._coming

    async def _bring(self, name: str, slot: int, coming: Future) -> None:
        begin_s, failed = self._kernel.now(), None
        try:
            await self._copy(name, slot)
        except Exception as error:
            log.warning("the weights of %r could not be copied: %s", name, error)
            failed = error
        self.residents.end(name, arrived=failed is None)
        self._notes.lasting("load", name, begin_s, bytes=self.residents.sizes[name])
        self._coming = None
        coming.set(failed)


def copy_for_real(kernel: Kernel, experts: ExpertWeights) -> Copy:
    """On a thread beside that of the steps, which does not give way to them: they need it done in time."""

    async def copy(name: str, slot: int) -> None:
        for piece in experts.pieces(name, slot):
            await kernel.offload(piece)

    return copy


def copy_simulated(seconds: Callable[[str], float]) -> Copy:
    """One after another, for as long as is said."""
    link = Fifo("weights")

    async def copy(name: str, slot: int) -> None:
        await Use(link, seconds(name))

    return copy
