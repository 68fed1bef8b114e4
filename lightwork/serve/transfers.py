"""KV of one engine that comes and goes: from another engine, to host memory and back, beside the steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile

from lightwork.memory.host import Transfer
from lightwork.memory.kv import KVCache
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel
from lightwork.serve.notes import Notes
from lightwork.serve.runner import Runner
from lightwork.serve.sequence import Lender
from lightwork.serve.sequence import Sequence as Seq

log = logging.getLogger(__name__)


class Transfers:
    """arrived(sequence, computed, error): told when the KV of so many tokens is there, or why not. ended:
    told when copies to host memory have ended.

    pulls: by sequence, KV that is on its way; stores: copies to host memory. Each with what is set at its
    end.
    """

    def __init__(
        self,
        kernel: Kernel,
        runner: Runner,
        kv: KVCache,
        notes: Notes,
        arrived: Callable[[Seq, int, Exception | None], None],
        ended: Callable[[], None],
    ) -> None:
        self._kernel = kernel
        self._runner = runner
        self._kv = kv
        self._notes = notes
        self._arrived = arrived
        self._ended = ended
        self.pulls: dict[int, Future] = {}
        self.stores: dict[Transfer, Future] = {}
        self._leaving: set[int] = set()

    @property
    def busy(self) -> bool:
        return bool(self.pulls or self.stores)

    def come_first(self, num_running: int) -> bool:
        """Whether no step should be planned now: as the tier asks, or while few of those admitted can run."""
        if self._kv.host is None or not self.busy:
            return False
        return not self._kv.host.tier.overlap or 2 * len(self.pulls) > num_running

    def ready(self, waiting: Sequence[Seq]) -> Sequence[Seq]:
        """Who may be admitted. Where nothing is to be computed again, nobody from the first on whose copy to
        host memory is still on its way."""
        if self._kv.host is None or not self._kv.host.tier.parts or not self._leaving:
            return waiting
        return [*takewhile(lambda seq: seq.id not in self._leaving, waiting)]

    def conflicts(self) -> list[Future]:
        """What has to end before blocks given out since the last call are written: copies that read them.

        All copies, if the tier does not want steps beside them.
        """
        conflicts = [self.stores[transfer] for transfer in self._kv.conflicts()]
        if self._kv.host is None or self._kv.host.tier.overlap:
            return conflicts
        return [*self.stores.values(), *self.pulls.values()]

    def begin(self, seq: Seq, writing: Iterable[Future]) -> None:
        """Bring a sequence's KV into its reserved blocks, from the engine that has it or from host memory.

        writing: what else may still use these blocks.
        """
        after = [*self.conflicts(), *writing]
        self.pulls[seq.id] = self._kernel.future(f"the KV of {seq}")
        if seq.source is None:
            pull = self._fetch(seq, self._kv.fetch(seq.id, seq.tokens), after)
        else:
            pull = self._pull(seq, seq.source, after)
        self._kernel.spawn(pull, name=f"pull {seq.id}")

    def release(self, seq: Seq, *, store: bool) -> None:
        """Give up a sequence's blocks. store: what host memory does not hold of them is copied there."""
        transfer = self._kv.store(seq.id, seq.tokens) if store else None
        self._kv.release(seq.id)
        if transfer is not None:
            self.stores[transfer] = self._kernel.future("copies to host memory")
            self._leaving.add(seq.id)
            self._kernel.spawn(self._store(transfer, seq.id), name=f"store {seq.id}")

    async def _pull(self, seq: Seq, source: Lender, after: Iterable[Future]) -> None:
        begin_s, failed = self._kernel.now(), None
        try:
            for ended in after:
                await ended
            await self._runner.pull(source.pool, source.lent(seq), self._kv.table(seq.id), seq.computed)
        except Exception as error:
            failed = error
        self._notes.lasting("pull", str(seq.id), begin_s, tokens=seq.computed)
        source.give_up(seq)
        seq.source = None
        self.pulls.pop(seq.id).set(None)
        self._arrived(seq, seq.computed, failed)

    async def _fetch(self, seq: Seq, transfer: Transfer, after: Iterable[Future]) -> None:
        """What cannot be read is computed again."""
        begin_s, computed = self._kernel.now(), seq.computed
        try:
            for ended in after:
                await ended
            await self._runner.swap_in(transfer.runs)
            computed = max(computed, len(transfer.tokens))
        except Exception as error:
            log.warning("%s is computed again, its KV could not be read from host memory: %s", seq, error)
        self._kv.fetched(transfer)
        self._notes.lasting(
            "fetch", str(seq.id), begin_s, blocks=len(transfer.src), copies=len(transfer.runs)
        )
        self.pulls.pop(seq.id).set(None)
        self._arrived(seq, computed, None)

    async def _store(self, transfer: Transfer, id: int) -> None:
        """What cannot be written is not there later."""
        begin_s, arrived = self._kernel.now(), False
        try:
            await self._runner.swap_out(transfer.runs)
            arrived = True
        except Exception as error:
            log.warning("KV could not be copied to host memory: %s", error)
        self._kv.stored(transfer, arrived=arrived)
        self._notes.lasting("store", str(id), begin_s, blocks=len(transfer.src), copies=len(transfer.runs))
        self.stores.pop(transfer).set(None)
        self._leaving.discard(id)
        self._ended()
