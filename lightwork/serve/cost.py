"""How long a step takes on a cluster: the model's counted work, priced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightwork.cluster.calibration import Calibration
from lightwork.cluster.pricing import CostModel
from lightwork.errors import CapacityError
from lightwork.memory.kv import Copy
from lightwork.models.adapters import Adapter
from lightwork.models.spec import ModelSpec
from lightwork.models.work import around_work, forward_work, head_work, products, slice_work
from lightwork.runtime.effects import DTYPE_BYTES, Work
from lightwork.serve.schedulers import Step
from lightwork.serve.training import Slice

if TYPE_CHECKING:
    from lightwork.serve.simulated_runner import StepCost

KV_SHARE = 0.9
"""Share of a device's memory that weights and KV may fill; the rest is for activations and the runtime."""


SAMPLED = 16
"""One step of so many is taken apart by what bounds it."""


class ClusterCost:
    """Steps of one model on tp x pp devices: tensor parallel within a stage, pipeline stages in a row.

    step_s: host time per step and stage; None takes the device's. fused=False: as if no device could make a
    layer one kernel. adapters: by what requests say in `model`. spent_s: of one step in sixteen, seconds by
    what bounds them.
    """

    def __init__(
        self,
        spec: ModelSpec,
        costs: CostModel,
        *,
        dtype: str,
        tp: int = 1,
        pp: int = 1,
        step_s: float | None = None,
        fused: bool = True,
        adapters: Mapping[str, Adapter] | None = None,
    ) -> None:
        self.spec = spec
        self.kernels = spec.num_layers + 1 if costs.cluster.device.unit.fuses and fused else 0
        self.costs = costs
        self.dtype = dtype
        self.adapters = adapters or {}
        self.tp = tp
        self.pp = pp
        self.step_s = costs.cluster.device.step_s if step_s is None else step_s
        self.spent_s: dict[str, float] = {}
        self._steps = 0

    def stages(self, step: Step) -> Sequence[float]:
        """Seconds in each of the pp stages; layers are split evenly and so is the time."""
        chunks, scored = rows_of(step), num_scored(step)
        rows = sum(count for _, count in chunks)
        scored += 2 * sum(s.count for s in step.slices if s.layer == self.spec.num_layers)  # and back
        layers = [s for s in step.slices if s.layer < self.spec.num_layers]
        passes = self._passes(rows, layers)
        sizes: Any = {"dtype": self.dtype, "tp": self.tp}
        work = [products(self.spec, n, num, **sizes) for n, num in passes.items()]
        if step.copies:
            work.append(self._copied(step.copies))
        if rows:
            work += around_work(self.spec, chunks, **sizes, shared=step.shared)
        if scored:
            work.append(head_work(self.spec, scored, **sizes))
        if self.adapters:
            work += self._adapted(step)
        for _, start, count, back in layers:
            work += slice_work(self.spec, start, count, back=back, **sizes)
        seconds = self.costs.seconds(work, kernels=self.kernels)
        exchange_s = self._exchange_s(passes, layers) if self.tp > 1 else 0.0
        seconds += exchange_s
        if self._steps % SAMPLED == 0:
            bounds = self.costs.bounds(work, kernels=self.kernels) | {
                "network": exchange_s,
                "host": self.step_s * self.pp,
            }
            self.spent_s = {name: self.spent_s.get(name, 0.0) + s for name, s in bounds.items()}
        self._steps += 1
        return with_forming([seconds / self.pp + self._around_s(rows)] * self.pp, step)

    def pass_s(self, chunks: Sequence[tuple[int, int]]) -> float:
        """See `PassCost`; through all stages."""
        rows = sum(count for _, count in chunks)
        work = forward_work(self.spec, chunks, len(chunks), dtype=self.dtype, tp=self.tp)
        seconds = self.costs.seconds(work, kernels=self.kernels) + self.pp * self._around_s(rows)
        if self.tp > 1:
            seconds += self._exchange_s({rows: self.spec.num_layers}, ())
        return seconds

    def _around_s(self, rows: int) -> float:
        """Of each stage beside its layers: the host's, and sending rows to the next."""
        if self.pp == 1:
            return self.step_s
        link = self.costs.cluster.link(0, self.tp)
        return self.step_s + rows * self._row_bytes / link.bytes_per_s + link.latency_s

    def _adapted(self, step: Step) -> tuple[Work, ...]:
        """What rows add that have an adapter: two thin products beside each of its matrices."""
        rows: Counter[str] = Counter()
        for chunk, (_, count) in zip(step.chunks, rows_of(step), strict=True):
            rows[chunk.seq.request.model] += count
        used = [(self.adapters[name], count) for name, count in rows.items() if name]
        if not used:
            return ()
        work = Work(
            kind="matmul",
            dtype=self.dtype,
            ops=sum(2 * count * adapter.nbytes / 4 for adapter, count in used) / self.tp,
            bytes=sum(adapter.nbytes for adapter, _ in used) / self.tp,
            rows=sum(count for _, count in used),
            launches=2 * max(len(adapter.deltas) for adapter, _ in used),
        )
        return (work,)

    def _passes(self, rows: int, slices: Sequence[Slice]) -> Mapping[int, int]:
        """How many layers a step passes with how many rows in one product: its own, and those of training."""
        if not slices:
            return {rows: self.spec.num_layers} if rows else {}
        trained: Counter[int] = Counter()
        for piece in slices:
            trained[piece.layer] += piece.count
        passes = Counter(rows + more for more in trained.values())
        if rows:
            passes[rows] += self.spec.num_layers - len(trained)
        return passes

    def _exchange_s(self, passes: Mapping[int, int], slices: Sequence[Slice]) -> float:
        """All-reduces between the ranks: two of each layer's pass, and two more of what goes back."""
        back = Counter(piece.count for piece in slices if piece.back)
        return sum(
            2 * num * self.costs.collective_seconds("all_reduce", range(self.tp), rows * self._row_bytes)
            for some in (passes, back)
            for rows, num in some.items()
        )

    @property
    def _row_bytes(self) -> float:
        return self.spec.hidden_size * DTYPE_BYTES[self.dtype]

    def _copied(self, copies: Sequence[Copy]) -> Work:
        """Keys and values that are read and written before the step."""
        num_bytes = sum(copy.num_slots for copy in copies) * self.spec.kv_bytes_per_token(self.dtype)
        return Work(
            kind="vector",
            dtype=self.dtype,
            ops=0.0,
            bytes=2 * num_bytes / self.tp,
            launches=2 * len(copies),
        )

    @property
    def weights_bytes(self) -> int:
        return self.spec.num_params * DTYPE_BYTES[self.dtype]

    @property
    def memory_bytes(self) -> float:
        """What weights and KV may fill on all devices."""
        return self.costs.cluster.device.memory().bytes * KV_SHARE * self.tp * self.pp

    def kv_tokens(self) -> int:
        """Tokens whose KV fits beside the weights. Raises CapacityError if the weights alone do not fit."""
        left = self.memory_bytes - self.weights_bytes
        if left <= 0:
            raise CapacityError(
                f"the weights take {self.weights_bytes / 1e9:.0f} GB",
                expected=f"less than {self.memory_bytes / 1e9:.0f} GB on {self.tp * self.pp} devices",
                fix="more devices",
            )
        return int(left / self.spec.kv_bytes_per_token(self.dtype))


class EagerCost:
    """Steps of an engine whose host issues kernels one by one, layer after layer, while the device works.

    A step ends when the slower of the two has ended, as in eager PyTorch, which waits for the chosen tokens
    after each step. device: its time alone, without a step_s. layer_s: host seconds per layer.
    """

    def __init__(self, device: ClusterCost, *, layer_s: float) -> None:
        self.device = device
        self.layer_s = layer_s

    def stages(self, step: Step) -> Sequence[float]:
        host_s = self.layer_s * self.device.spec.num_layers / self.device.pp
        return [max(device_s, host_s) for device_s in self.device.stages(step)]


def with_forming(stages_s: Sequence[float], step: Step) -> Sequence[float]:
    """Stages of a step, the first of which waits until its drafts are there, or all for what is written
    beside them."""
    late_s = step.before_s + max(0.0, step.beside_s - sum(stages_s))
    return [stages_s[0] + late_s, *stages_s[1:]] if late_s else stages_s


def predicted(cost: StepCost) -> Callable[[Step], float]:
    """Seconds of a whole step by a cost model that nobody else asks; see `View.predict`."""
    return lambda step: sum(cost.stages(step))


def num_scored(step: Step) -> int:
    """Rows whose scores are wanted: the last of each text, and drafts."""
    ends = sum(c.start + c.count == known for c, known in zip(step.chunks, step.lengths(), strict=True))
    return ends + sum(map(len, step.drafts))


def rows_of(step: Step) -> list[tuple[int, int]]:
    """(start, rows) of each chunk, its draft included."""
    if not step.drafts:
        return [(start, count) for _, start, count in step.chunks]
    return [(c.start, c.count + len(d)) for c, d in zip(step.chunks, step.drafts, strict=True)]


def step_features(
    chunks: Sequence[tuple[int, int]], *, scored: int, shared: int = 0, copied: int = 0
) -> dict[str, float]:
    """What a calibration is fitted on. chunks: (start, rows) of each, drafts included. scored: rows whose
    scores are wanted. shared: keys not read, as they are for another chunk. copied: tokens whose keys and
    values are.

    keys: rows times keys seen; read: keys read; groups: distinct chunk lengths.
    """
    return {
        "constant": 1.0,
        "rows": float(sum(count for _, count in chunks)),
        "sequences": float(len(chunks)),
        "scored": float(scored),
        "keys": float(sum(count * (start + count / 2) for start, count in chunks)),
        "read": float(sum(start + count for start, count in chunks) - shared),
        "groups": float(len({count for _, count in chunks})),
        "copied": float(copied),
    }


class CalibratedCost:
    """Steps as long as a calibration of this machine predicts."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration

    def stages(self, step: Step) -> Sequence[float]:
        features = step_features(
            rows_of(step),
            scored=num_scored(step),
            shared=sum(step.shared),
            copied=sum(copy.num_slots for copy in step.copies),
        )
        return [self.calibration.predict(features)]
