"""A rank of a model that reads its share of every layer from disk, for each pass anew.

It is a `models.stage.Stage` of all layers whose weights are a file (`models.split`): blocks come into a few
slots, by one sequential read each that goes past the system's cache, while the blocks before them compute and
while ranks exchange. The first rank has the embedding, of which the rows of a step's tokens are read alone,
and the head; others are told neither tokens nor scores.

R rows  N scored rows  d hidden  V vocabulary
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightwork.kernels.rows import Rows
from lightwork.memory.residencies import Residency
from lightwork.memory.residents import Residents
from lightwork.memory.streamed import HEAD, Stream, copies, rank_pass
from lightwork.models.blocks import BlockFile, TableRows
from lightwork.models.model import KVPool, paged
from lightwork.models.packed import room
from lightwork.models.slices import Slice
from lightwork.models.spec import read_spec
from lightwork.models.split import Place, Split, head_of, layer_of
from lightwork.models.transformer import (
    Attend,
    CosSin,
    attention,
    logits,
    mlp_down,
    mlp_up,
    normalise,
    rotation,
)
from lightwork.parallel.all_reduces import AllReduce
from lightwork.runtime.effects import Compute, Move, Spawn
from lightwork.runtime.progress import Progress
from lightwork.runtime.threads import ThreadWorld

Peers = Mapping[type, Callable[[Any], Any]]
"""What carries out Send and Recv, by the class of the effect; none where there is one rank."""


class _Step(NamedTuple):
    """What blocks need to know of the rows of a pass."""

    cos_sin: CosSin | None
    attend: Attend
    scored_N: Tensor
    scores: bool


class StreamedStage:
    """A slice that computes, the first rank being the master (see `Slice`).

    residents: counts copies, and asserts that what is there is no more than cap_bytes, the arena's size.

    way: how ranks sum. file: counts what was read, rows of the embedding too. items: what is copied as one,
    with its blocks.
    """

    ends = True

    def __init__(
        self, split: Split, file: BlockFile, policy: Residency[Any], way: AllReduce, peers: Peers
    ) -> None:
        assert policy.ring is not None, "only a policy that streams"
        assert split.mine.master, "ranks send hidden states, and have no sums of embeddings"
        self.mine = split.mine
        self.spec = split.mine.shape(split.whole)
        self.file = file
        self.way = way
        self.nbytes = split.nbytes
        self.items = _items(split, layers=policy.ring.layers)
        self._blocks = split.blocks
        sizes = {item: self._end(item) - self._begin(item) for item in self.items}
        cap_bytes = min(policy.ring.slots, len(sizes)) * max(sizes.values())
        self.residents = Residents(sizes, cap_bytes, policy, [*sizes])
        self.stream = Stream(self.residents, split.mine.rank)
        self._begins = {block: self._begin(item) for item, blocks in self.items.items() for block in blocks}
        self._arena = torch.from_numpy(room(cap_bytes).reshape(self.residents.num_slots, -1))
        self._rows = TableRows(file)
        self.fetch = self._fetcher()
        self._world = ThreadWorld({Move: self.fetch, **peers})
        self._stop: Any = None

    @property
    def resident_bytes(self) -> int:
        """Of the weights that are in memory at once."""
        return self._arena.nbytes

    def new_kv(self, num_blocks: int, block_size: int) -> KVPool:
        return KVPool(self.spec, num_blocks, block_size, torch.float32, "cpu")

    def warm_up(self) -> None:
        """One forward of a few rows, on all ranks together."""
        self.forward(Rows.of_text(np.zeros(4, np.int64), 4), self.new_kv(1, 4))

    def forward(self, rows: Rows, kv: KVPool, x_Rd: Tensor | None = None) -> Tensor:
        """As `Stage.forward`: from the first rank logits [N, V], float32, from others [N, 0]. They need no
        tokens. x_Rd: not needed.

        Raises CheckpointError if weights cannot be read, and what the peers raise.
        """
        return self._run(rows, kv, scores=True)

    def states(self, rows: Rows, kv: KVPool, x_Rd: Tensor | None = None) -> Tensor:
        """As `Stage.states`: from the first rank [N, d], from others [N, 0]."""
        return self._run(rows, kv, scores=False)

    def _run(self, rows: Rows, kv: KVPool, *, scores: bool) -> Tensor:
        if self._stop is None or not self._stop.alive:
            self._world.perform(Spawn(copies(self.stream, self.copy), "weights"))
            self._stop = weakref.finalize(self, _stop, self._world, self.stream)
        with torch.inference_mode():
            y: Tensor = self._world.run(self.strategy(rows, kv, scores=scores))
        return y

    def close(self) -> None:
        """End the thread that reads; a later forward starts another."""
        if self._stop is not None:
            self._stop()

    @staticmethod
    def copy(item: str, slot: int) -> Move:
        """What brings an item to a slot. `fetch` carries it out."""
        return Move((item, slot), "disk", "memory")

    async def strategy(self, rows: Rows, kv: KVPool, *, scores: bool = True) -> Tensor:
        """A forward as a strategy of this rank, whoever carries it out and makes the copies. scores: whether
        it ends with them, or with what the head makes them of."""
        positions_R = torch.from_numpy(rows.positions)
        step = _Step(
            rotation(self.spec, positions_R, torch.float32),
            paged(self.spec, rows, kv, "cpu"),
            torch.from_numpy(rows.scored),
            scores,
        )
        first = self.mine.rank == 0
        x_Rd = self._embed(rows) if first else torch.empty(len(positions_R), self.spec.hidden_size)
        use = partial(self._use, step)
        y: Tensor = await rank_pass(
            self.mine.rank, self.mine.ranks, self.stream, self.items, use, self.way, x_Rd
        )
        return y if first else torch.zeros(len(rows.scored), 0)

    def _begin(self, item: str) -> int:
        return self._blocks[self.items[item][0]].begin

    def _end(self, item: str) -> int:
        return self._blocks[self.items[item][-1]].end

    def _use(self, step: _Step, block: str, slot: int, x_Rd: Tensor) -> Compute:
        return Compute((), self._part, (step, block, slot, x_Rd), block)

    def _part(self, step: _Step, name: str, slot: int, x_Rd: Tensor) -> Tensor:
        """What this rank's share of a block adds; of the head, the scores."""
        block = self._blocks[name]
        views = block.views(self._arena[slot], self._begins[name])
        if block.kind == HEAD:
            head = head_of(views)
            states_Nd = normalise(head, self.spec, x_Rd[step.scored_N])
            return logits(head, states_Nd) if step.scores else states_Nd
        layer = layer_of(views)
        if block.kind == "attention":
            return attention(block.layer, x_Rd, layer, self.spec, step.cos_sin, step.attend)
        return mlp_down(mlp_up(x_Rd, layer, self.spec), layer)

    def _fetcher(self) -> Callable[[Move], None]:
        """What reads, without this object: the thread that calls it must not keep it alive."""
        file, arena = self.file, self._arena.numpy()
        spans = {item: (self._begin(item), self._end(item)) for item in self.items}

        def fetch(effect: Move) -> None:
            item, slot = effect.x
            file.read(*spans[item], arena[slot])

        return fetch

    def _embed(self, rows: Rows) -> Tensor:
        places = self._blocks["embed"].places
        x_Rd = self._read(places["embed"], rows.tokens)
        return x_Rd + self._read(places["positions"], rows.positions) if "positions" in places else x_Rd

    def _read(self, table: Place, numbers: Any) -> Tensor:
        """Rows of a table of the file."""
        width = table.shape[1]
        found, asked = self._rows.read(table.begin, width * 4, numbers)
        return torch.from_numpy(found.view(np.float32))[torch.from_numpy(asked)]


def _items(split: Split, *, layers: bool) -> dict[str, tuple[str, ...]]:
    """What is copied as one, in the order of use: layers, or attention and MLP of each; then the head, where
    there is one."""
    found: dict[str, tuple[str, ...]] = {}
    for name, block in split.blocks.items():
        if block.kind == "embed":
            continue
        item = f"layer {block.layer}" if layers and block.layer >= 0 else name
        found[item] = (*found.get(item, ()), name)
    return found


def _stop(world: ThreadWorld, stream: Stream) -> None:
    world.perform(stream.stop())


def open_streamed_stage(
    path: Path,
    mine: Slice,
    policy: Residency[Any],
    way: AllReduce,
    meet: Callable[[], Peers],
    progress: Progress | None = None,
) -> StreamedStage:
    """Of a slice with all layers. Its file is made now if need be. meet: finds the other ranks; called when
    the file is there, which may take long.

    Raises CheckpointError, SpecError.
    """
    spec = read_spec(path)
    mine.shape(spec)
    split = Split(spec, mine)
    file = BlockFile(split.file(path, progress))
    return StreamedStage(split, file, policy, way, meet())
