"""A rank of a model of experts in simulation: shapes and counted work, routed as a trace says.

R rows  T terms  K experts of a row  S sequences  d hidden
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lightwork.cluster.pricing import CostModel
from lightwork.errors import CapacityError, RangeError
from lightwork.models.routing import RoutingTrace
from lightwork.models.spec import ModelSpec
from lightwork.models.work import attention_work, expert_work, head_work, product_work
from lightwork.parallel.expert_dispatch import ExpertDispatch, Ints, RoutedRows, Traffic
from lightwork.runtime.effects import DTYPE_BYTES, Compute, Meta, Work
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.simulated import SimWorld
from lightwork.runtime.trace import Span, Trace

INT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Parcel:
    """Rows on their way; nbytes: as they would be sent."""

    rows: RoutedRows
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """Steps of one token for each of some sequences, behind `context` tokens each.

    trace: token i is that of sequence i % num_seqs in step i // num_seqs. dtype: of weights and activations.
    """

    spec: ModelSpec
    trace: RoutingTrace
    num_seqs: int
    num_steps: int
    context: int
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if len(self.trace) < self.num_seqs * self.num_steps:
            raise RangeError(
                f"a trace of {len(self.trace)} tokens", expected=f"{self.num_seqs * self.num_steps} of them"
            )

    def rank_bytes(self, dispatch: ExpertDispatch) -> float:
        """What a rank has to hold: its experts, all other weights, keys and values."""
        n, spec, size = dispatch.placement.num_ranks, self.spec, DTYPE_BYTES[self.dtype]
        experts = spec.mlp_params() - spec.mlp_params(0.0)
        held = -(-self.num_seqs // n) if dispatch.return_home else self.num_seqs
        kept = held * (self.context + self.num_steps) * spec.kv_bytes_per_token(self.dtype)
        return (spec.num_params - experts * (1 - 1 / n)) * size + kept


class TracedShard:
    """See `expert_dispatch.Shard`; what it computes has shapes only."""

    def __init__(self, job: Decoding) -> None:
        self.spec = job.spec
        self._job = job
        self._attended = 0
        # windows and dense layers are the model's, one layer is enough to count attention by
        self._one = replace(job.spec, num_layers=1, moe=frozenset(), windowed=frozenset())

    @property
    def num_layers(self) -> int:
        return self.spec.num_layers

    @property
    def expert_layers(self) -> Sequence[int]:
        return self._job.trace.layers

    def begin(self, ids: Ints) -> Compute:
        chosen = np.zeros((len(ids), self.spec.experts_per_token), np.int64)
        x = Meta((len(ids), self.spec.hidden_size), self._job.dtype)
        return self._moves(RoutedRows(ids, chosen, x), 1, "embed")

    def attend(self, layer: int, rows: RoutedRows) -> Compute:
        self._attended += len(rows.ids)
        job, num = self._job, len(rows.ids)
        products = product_work(self._one, num, dtype=job.dtype)
        seen = [(job.context + step, 1) for step in (rows.ids // job.num_seqs).tolist()]
        around = attention_work(self._one, seen, dtype=job.dtype)
        work = (*products["qkv"], *around, *products["out"]) if num else ()
        return Compute(work, None, (rows,), "attention")

    def dense(self, layer: int, rows: RoutedRows) -> Compute:
        width = self.spec.dense_ffn_size or self.spec.ffn_size
        spec = replace(self.spec, ffn_size=width)
        work = expert_work(spec, [len(rows.ids)], dtype=self._job.dtype)
        return Compute((work,) if len(rows.ids) else (), None, (rows,), "mlp")

    def route(self, layer: int, rows: RoutedRows) -> Compute:
        at = self.expert_layers.index(layer)
        routed = rows._replace(chosen=self._job.trace.chosen_NLK[rows.ids, at])
        params = self.spec.num_experts * self.spec.hidden_size
        work = Work(
            dtype=self._job.dtype,
            ops=2.0 * len(rows.ids) * params,
            bytes=params * DTYPE_BYTES[self._job.dtype],
            rows=len(rows.ids),
        )
        return Compute((work,) if len(rows.ids) else (), None, (routed,), "route")

    def experts(self, layer: int, rows: RoutedRows, row: Ints, k: Ints) -> Compute:
        chosen = rows.chosen[row, k]
        x = Meta((len(row), self.spec.hidden_size), self._job.dtype)
        work = expert_work(self.spec, np.bincount(chosen).tolist(), dtype=self._job.dtype)
        terms = RoutedRows(rows.ids[row], chosen[:, None], x)
        return Compute((work,) if len(row) else (), None, (terms,), "experts")

    def add(self, rows: RoutedRows, terms: RoutedRows) -> Compute:
        return self._moves(rows, 3, "add")

    def finish(self, rows: RoutedRows) -> Compute:
        work = head_work(self.spec, len(rows.ids), dtype=self._job.dtype)
        return Compute((work,) if len(rows.ids) else (), None, (rows.ids + self._job.num_seqs,), "head")

    def news(self) -> Meta:
        kept = self.spec.kv_bytes_per_token(self._job.dtype) // self.num_layers + 2 * INT_BYTES
        attended, self._attended = self._attended, 0
        return Meta((attended, kept), "int8")

    def learn(self, messages: Sequence[Meta]) -> Compute:
        moved = sum(message.nbytes for message in messages)
        return Compute((Work(kind="vector", dtype=self._job.dtype, bytes=2.0 * moved),), name="keep")

    def pack(self, rows: RoutedRows) -> Parcel:
        numbers = 1 + rows.chosen.shape[1]
        return Parcel(rows, rows.x.nbytes + INT_BYTES * numbers * len(rows.ids))

    def unpack(self, message: Parcel) -> RoutedRows:
        return message.rows

    def join(self, parts: Sequence[RoutedRows]) -> RoutedRows:
        ids, chosen, x = zip(*parts, strict=True)
        shape = (sum(part.shape[0] for part in x), self.spec.hidden_size)
        return RoutedRows(np.concatenate(ids), np.concatenate(chosen), Meta(shape, self._job.dtype))

    def _moves(self, rows: RoutedRows, times: int, name: str) -> Compute:
        work = Work(kind="vector", dtype=self._job.dtype, bytes=float(times * rows.x.nbytes))
        return Compute((work,) if len(rows.ids) else (), None, (rows,), name)


class Simulated(NamedTuple):
    """seconds: of all steps. all_to_all_s, all_gather_s: of them, in exchanges, from when the last rank
    entered each."""

    seconds: float
    all_to_all_s: float
    all_gather_s: float
    traffic: Traffic


def simulate(job: Decoding, dispatch: ExpertDispatch, costs: CostModel) -> Simulated:
    """Decode on a cluster, whose first ranks have the experts.

    Raises CapacityError if a device cannot hold its part, RangeError for a placement of another model.
    """
    n = dispatch.placement.num_ranks
    room, needed = costs.cluster.device.memory().bytes, job.rank_bytes(dispatch)
    if needed > room:
        raise CapacityError(
            f"weights, keys and values take {needed / 1e9:.1f} GB of a rank",
            expected=f"at most {room / 1e9:.1f} GB",
            fix="fewer sequences, or return_home=True, which keeps a sequence on one rank only",
        )
    trace = Trace("simulated")
    world = SimWorld(Kernel(trace=trace), costs.price, costs.resources())
    for rank in range(n):
        first = np.arange(rank, job.num_seqs, n)
        world.launch(rank, dispatch.decode(rank, n, TracedShard(job), first, job.num_steps))
    world.run()
    spent = _exchanging(trace.spans, n)
    seconds = world.kernel.now()
    return Simulated(seconds, spent["all_to_all"], spent["all_gather"], Traffic.of(trace.spans, n))


def _exchanging(spans: Sequence[Span], n: int) -> dict[str, float]:
    """Seconds of each kind of collective, all of them of all ranks."""
    of_ranks: list[list[Span]] = [[] for _ in range(n)]
    for span in spans:
        if span.kind == "collective":
            of_ranks[int(span.rank)].append(span)
    spent = {"all_to_all": 0.0, "all_gather": 0.0}
    for met in zip(*of_ranks, strict=True):
        spent[met[0].name] += met[0].end_s - max(span.start_s for span in met)
    return spent
