"""Expert parallelism in which a token stays where its expert is, instead of coming home after every layer.

Paper:  "Exploiting Inter-Layer Expert Affinity for Accelerating Mixture-of-Experts Model Inference", 2024
Idea:   all ranks hold the keys and values of all sequences, so a token's attention runs wherever the token
        is: it goes to the rank of its next expert, if that is another one, and goes on from there
Shapes: G ranks, R rows anywhere -> the same rows, where their last experts are, or at home
Cost:   an all-to-all a layer, of the rows that cross, and an all-gather a step, of new keys and values;
        coming home: two all-to-alls a layer. Keys and values are in memory G times
Claims: exflow
Differs: prompts are computed by their home ranks, which then tell the others; the paper has every rank
        compute all prompts. A row of K > 1 experts goes on from the first one's rank, and the others send
        there what they add: a second all-to-all

R rows  K experts that a row takes  G ranks  d hidden
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import RangeError
from lightwork.parallel.expert_placement import ExpertPlacement
from lightwork.runtime.effects import Collective, Compute, Meta
from lightwork.runtime.trace import Span

Ints = NDArray[np.int64]


class RoutedRows(NamedTuple):
    """Rows on a rank. ids: which tokens they are, [R]. chosen: their experts, [R, K], most probable first.

    x: [R, d], a tensor or its Meta: hidden states, or what one expert adds to them.
    """

    ids: Ints
    chosen: Ints
    x: Any

    def take(self, index: Ints) -> RoutedRows:
        x: Any = self.x
        x = Meta((len(index), *x.shape[1:]), x.dtype) if isinstance(x, Meta) else x[index]
        return RoutedRows(self.ids[index], self.chosen[index], x)


class Shard(Protocol):
    """What a rank can do: all but the experts of a model, and some of these.

    What computes is an effect, whose value is as said. expert_layers: the layers that have experts.
    """

    @property
    def num_layers(self) -> int: ...
    @property
    def expert_layers(self) -> Sequence[int]: ...

    def begin(self, ids: Ints) -> Compute:
        """Rows as they enter the first layer."""
        ...

    def attend(self, layer: int, rows: RoutedRows) -> Compute:
        """Rows behind the attention of a layer, whose keys and values this rank then has."""
        ...

    def dense(self, layer: int, rows: RoutedRows) -> Compute:
        """Rows behind an MLP that has no experts."""
        ...

    def route(self, layer: int, rows: RoutedRows) -> Compute:
        """Rows with their experts in this layer."""
        ...

    def experts(self, layer: int, rows: RoutedRows, row: Ints, k: Ints) -> Compute:
        """What expert chosen[row, k] adds, of each such pair, weighted: `chosen` is that expert then."""
        ...

    def add(self, rows: RoutedRows, terms: RoutedRows) -> Compute:
        """Rows with all that experts add to them, in the order of the experts."""
        ...

    def finish(self, rows: RoutedRows) -> Compute:
        """Choose the tokens that follow; ids of the rows that they are in the next step."""
        ...

    def news(self) -> Any:
        """Message of the keys and values computed since it was last asked."""
        ...

    def learn(self, messages: Sequence[Any]) -> Compute:
        """Keep the news of all ranks."""
        ...

    def pack(self, rows: RoutedRows) -> Any:
        """One message, with a row for each."""
        ...

    def unpack(self, message: Any) -> RoutedRows: ...

    def join(self, parts: Sequence[RoutedRows]) -> RoutedRows: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertDispatch:
    """return_home: after every layer rows return to the rank that holds their sequence; else they go on from
    their expert's, and all ranks hold all sequences.
    """

    placement: ExpertPlacement
    return_home: bool = False

    async def generate(self, me: int, n: int, shard: Shard, prompts: Ints, num_steps: int) -> None:
        """Rank `me`: rows that are the prompts at home there, then steps of a token for each sequence; the
        shard keeps what comes out.

        Raises RangeError if the placement is for another number of ranks or layers.
        """
        self._check(n, shard)
        ids = await self.step(me, n, shard, prompts, return_home=True)
        await self.decode(me, n, shard, ids, num_steps)

    async def decode(self, me: int, n: int, shard: Shard, ids: Ints, num_steps: int) -> None:
        """Steps of a token for each sequence, of which these begin here. Raises RangeError, as `generate`."""
        self._check(n, shard)
        for _ in range(num_steps):
            ids = await self.step(me, n, shard, ids)

    async def step(
        self, me: int, n: int, shard: Shard, ids: Ints, *, return_home: bool | None = None
    ) -> Ints:
        """Rows that begin here, through all layers; ids of those that begin here in the next step."""
        home = self.return_home if return_home is None else return_home
        place_of = dict(zip(shard.expert_layers, self.placement.rank_LE, strict=True))
        rows = await shard.begin(ids)
        for layer in range(shard.num_layers):
            rows = await shard.attend(layer, rows)
            if layer in place_of:
                rows = await _through_experts(me, n, shard, layer, place_of[layer], rows, home)
            else:
                rows = await shard.dense(layer, rows)
        following: Ints = await shard.finish(rows)
        if not self.return_home:
            await shard.learn(await Collective("all_gather", tuple(range(n)), shard.news()))
        return following

    def _check(self, n: int, shard: Shard) -> None:
        given = self.placement.num_ranks, len(self.placement.rank_LE)
        if given != (n, len(shard.expert_layers)):
            raise RangeError(
                f"experts are placed on {given[0]} ranks in {given[1]} layers",
                expected=f"{n} ranks, {len(shard.expert_layers)} layers that have experts",
            )


async def _through_experts(
    me: int, n: int, shard: Shard, layer: int, rank_E: Ints, rows: RoutedRows, return_home: bool
) -> RoutedRows:
    """A layer's experts. A row visits every rank that has one of its own, and goes on from where it was, or
    from the first of them."""
    rows = await shard.route(layer, rows)
    visits_RK = rank_E[rows.chosen]
    came = await _exchange(me, n, shard, rows, [(visits_RK == rank).any(1) for rank in range(n)])
    here = shard.join(came)
    at_RK = rank_E[here.chosen]
    row, k = np.nonzero(at_RK == me)
    terms = await shard.experts(layer, here, row, k)
    if return_home:
        goes_on_R = np.repeat(np.arange(n), [len(part.ids) for part in came])
    else:
        goes_on_R = at_RK[:, 0]
        rows = here.take(np.flatnonzero(goes_on_R == me))
    if return_home or rows.chosen.shape[1] > 1:
        to_T = goes_on_R[row]
        terms = shard.join(await _exchange(me, n, shard, terms, [to_T == rank for rank in range(n)]))
    added: RoutedRows = await shard.add(rows, terms)
    return added


async def _exchange(
    me: int, n: int, shard: Shard, rows: RoutedRows, to: Sequence[NDArray[np.bool_]]
) -> list[RoutedRows]:
    """All-to-all of rows, by whom they go to; by whom they came from. What stays is in no message."""
    parts = [rows.take(np.flatnonzero(chosen_R)) for chosen_R in to]
    nothing = rows.take(np.arange(0))
    messages = [shard.pack(nothing if rank == me else part) for rank, part in enumerate(parts)]
    came = await Collective("all_to_all", tuple(range(n)), messages)
    return [parts[me] if rank == me else shard.unpack(message) for rank, message in enumerate(came)]


class Traffic(NamedTuple):
    """Of all ranks. all_to_alls, all_gathers: how many, each counted once. bytes: that left a rank.

    Each all-gather sends what a rank gives to every other.
    """

    all_to_alls: int
    all_to_all_bytes: int
    all_gathers: int
    all_gather_bytes: int

    @classmethod
    def of(cls, spans: Iterable[Span], n: int) -> Traffic:
        """From the spans of a run on n ranks, simulated or real."""
        count = {"all_to_all": 0, "all_gather": 0}
        size = {"all_to_all": 0, "all_gather": 0}
        for span in spans:
            if span.kind == "collective":
                count[span.name] += 1
                size[span.name] += span.bytes
        return cls(
            count["all_to_all"] // n,
            size["all_to_all"],
            count["all_gather"] // n,
            size["all_gather"] * (n - 1),
        )
