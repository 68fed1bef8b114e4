"""A model on the compiled CPU step whose weights are on disk: they come block by block into a few slots.

The file is that of packed weights, in which the blocks lie in the order of the forward; each is read by one
sequential read that goes past the system's cache. The step is called for each unit of blocks, and is the one
that computes with all weights in memory: bits are the same.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import SpecError
from lightwork.memory.residencies import Residency
from lightwork.memory.residents import Residents
from lightwork.memory.streamed import Stream, copies, one_pass
from lightwork.models.blocks import BlockFile, EmbeddingRows, Slots, pages
from lightwork.models.packed import Layout, not_kept, packed_file
from lightwork.runtime.effects import Compute, Move, Spawn
from lightwork.runtime.threads import ThreadWorld

if TYPE_CHECKING:
    from lightwork.kernels.cpu.state import State
    from lightwork.models.checkpoint import Source
    from lightwork.runtime.progress import Progress


@dataclass(frozen=True, slots=True)
class Unit:
    """Neighbouring blocks [first, last) of a layout that are copied together, as the bytes of whole pages
    [begin, end)."""

    first: int
    last: int
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


def units(layout: Layout, *, layers: bool) -> dict[str, Unit]:
    """What is copied, in the order of the forward: layers, or attention and MLP of each; then the head."""
    found = {}
    for i in range(layout.spec.num_layers):
        if layers:
            found[f"layer {i}"] = _unit(layout, 1 + 2 * i, 3 + 2 * i)
        else:
            found[f"attention {i}"] = _unit(layout, 1 + 2 * i, 2 + 2 * i)
            found[f"mlp {i}"] = _unit(layout, 2 + 2 * i, 3 + 2 * i)
    last = len(layout.blocks)
    found["head"] = _unit(layout, last - 1, last)
    return found


def _unit(layout: Layout, first: int, last: int) -> Unit:
    return Unit(first, last, *pages(layout.blocks[first].begin, layout.blocks[last - 1].end))


class StreamedWeights:
    """The weights of a `CompiledModel` (its `Arriving`), of which `policy` says what is there.

    residents: counts copies, and asserts that what is there is no more than cap_bytes, the arena's size.
    file: counts what was read: rows of the embedding as well, which are read beside.
    """

    def __init__(self, layout: Layout, file: BlockFile, policy: Residency[Any]) -> None:
        ring = policy.ring
        if ring is None:
            raise SpecError(
                f"{policy!r} does not say how much of a model it keeps",
                expected="a residency for one model's weights",
                fix="Sliding(window=2)",
            )
        self.file = file
        self.units = units(layout, layers=ring.layers)
        sizes = {name: unit.nbytes for name, unit in self.units.items()}
        num_slots = min(ring.slots, len(sizes))
        self.residents = Residents(sizes, num_slots * max(sizes.values()), policy, [*sizes])
        self._blocks = layout.blocks
        self._slots = Slots(layout, self.residents.num_slots, self.residents.slot_bytes)
        self._rows = EmbeddingRows(layout, file)
        self._stream = Stream(self.residents)
        self._world = ThreadWorld({Move: self._fetcher()})
        self._state: State | None = None
        self._stop: Any = None

    @property
    def arena(self) -> NDArray[np.uint8]:
        """All the memory that weights are in."""
        return self._slots.arena

    def bind(self, state: State) -> None:
        self._slots.bind(state)
        self._state = state

    def run(self, compute: Callable[[int, int], object]) -> None:
        """One pass: compute(first block, last block) for all blocks in order, each with its weights there.

        Raises CheckpointError if they cannot be read; the next pass tries again.
        """
        if self._stop is None or not self._stop.alive:
            fetch = partial(Move, src="disk", dst="memory")
            child = copies(self._stream, lambda name, slot: fetch((name, slot)))
            self._world.perform(Spawn(child, "weights"))
            self._stop = weakref.finalize(self, _stop, self._world, self._stream)
        assert self._state is not None, "only a model that is bound computes"
        self._rows.gather(self._state)
        compute(0, 1)
        self._world.run(one_pass(self._stream, [*self.units], partial(self._use, compute), None))

    def close(self) -> None:
        """End the thread that reads; a later pass starts another."""
        if self._stop is not None:
            self._stop()

    def _use(self, compute: Callable[[int, int], object], name: str, slot: int, x: None) -> Compute:
        unit = self.units[name]
        shift = slot * self.residents.slot_bytes - unit.begin
        self._slots.point(self._blocks[unit.first : unit.last], shift)
        return Compute((), compute, (unit.first, unit.last), name)

    def _fetcher(self) -> Callable[[Move], None]:
        """What reads, without this object: the thread that calls it must not keep it alive."""
        file, arena, its_units = self.file, self._slots.arena, self.units

        def fetch(effect: Move) -> None:
            name, slot = effect.x
            unit = its_units[name]
            file.read(unit.begin, unit.end, arena[slot])

        return fetch


def _stop(world: ThreadWorld, stream: Stream) -> None:
    world.perform(stream.stop())


def streamed(
    policy: Residency[Any], layout: Layout, checkpoint: Source, progress: Progress | None
) -> StreamedWeights:
    """From the file of packed weights, made now if need be. Raises CheckpointError if it cannot be kept."""
    try:
        file = BlockFile(packed_file(layout, checkpoint, progress))
    except OSError as error:
        raise not_kept(layout.nbytes, error) from error
    return StreamedWeights(layout, file, policy)
