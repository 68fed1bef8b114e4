"""What nano-operations come to on this machine: a small Llama, two ranges, attention beside products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import torch

from lightwork.claims import Measured
from lightwork.cluster.devices import interpolate
from lightwork.kernels.rows import Rows
from lightwork.models import resolve
from lightwork.models.model import Model
from lightwork.models.spec import ModelSpec
from lightwork.models.tokenizer import Tokenizer
from lightwork.models.weights import Layer, Weights
from lightwork.parallel.lanes import Lanes
from lightwork.parallel.nano_forward import NanoForward, NanoStep, dealt, taken
from lightwork.parallel.op_plan import OpPlan, serial_plan
from lightwork.parallel.overlap import Seconds
from lightwork.plan.nano import Found, Layers, search
from lightwork.runtime.clock import WallClock
from lightwork.runtime.effects import Compute, Spawn
from lightwork.runtime.kernel import Kernel
from lightwork.serve.engine import Engine
from lightwork.serve.loads import Arrival
from lightwork.serve.opening import open_engine, own_cores
from lightwork.serve.plan import Plan
from lightwork.serve.schedulers.nano_flow import NanoFlow
from lightwork.serve.simulate import SyntheticRequests, run_load
from lightwork.train.initial import initial_weights

BLOCK_SIZE = 64
DECODES, CONTEXT, PROMPT = 192, 512, 64
ROWS = DECODES + PROMPT
ROUNDS, CALLS = 7, 5
NUM_SEQS = 16
HALF = 0.5
"""Share of two cores that a lane on one of them has."""

Call = Callable[[], object]


def _rows() -> Rows:
    """Decodes of one context, and a prompt."""
    blocks = CONTEXT // BLOCK_SIZE
    tables = np.arange((DECODES + 1) * blocks, dtype=np.int32).reshape(-1, blocks)
    seqs = np.minimum(np.arange(ROWS), DECODES).astype(np.int32)
    index = np.concatenate([np.full(DECODES, CONTEXT - 1), np.arange(PROMPT)])
    return Rows(
        tokens=np.zeros(ROWS, np.int64),
        positions=index,
        slots=tables[seqs, index // BLOCK_SIZE].astype(np.int64) * BLOCK_SIZE + index % BLOCK_SIZE,
        seqs=seqs,
        index=index,
        ancestors=np.zeros(ROWS, np.uint64),
        known=np.array([CONTEXT] * DECODES + [PROMPT]),
        tables=tables,
        scored=np.zeros(0, np.int64),
    )


class Bench:
    """A small model, and a step whose time is in products and in keys and values."""

    def __init__(self, device: str, seed: int, *, hidden: int = 512, layers: int = 4) -> None:
        spec = ModelSpec(
            family="llama",
            vocab_size=512,
            hidden_size=hidden,
            num_layers=layers,
            num_heads=hidden // 64,
            num_kv_heads=hidden // 128,
            head_size=64,
            ffn_size=3 * hidden,
            max_len=CONTEXT,
        )
        torch.manual_seed(seed)
        weights = _moved(initial_weights(spec, seed), device)
        self.model = Model(spec, weights, Tokenizer(resolve("tiny:llama")), {}, device)
        self.rows = _rows()
        self.kv = self.model.new_kv(self.rows.tables.size, BLOCK_SIZE)
        self.kv.keys_LTGD.normal_()
        self.kv.values_LTGD.normal_()

    def calls(self, num: int) -> dict[str, Call]:
        """One layer's operators on the first rows of the step."""
        plan = serial_plan(num)
        step = NanoStep(self.model, taken(self.rows, dealt(self.rows)[:num]), self.kv, plan, 1)
        return {op.operator: _call(step.do(0, op)) for op in plan.ops}

    def forward(self, plan: OpPlan, lanes: Lanes) -> Call:
        carried_out = NanoForward(self.model, plan, lanes)
        return torch.inference_mode()(lambda: carried_out(self.rows, self.kv))


def _moved(weights: Weights, device: str) -> Weights:
    """On a GPU in bfloat16, on a CPU as they are."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    parts: list[Weights | Layer] = [weights, *weights.layers]
    for part in parts:
        for field in fields(part):
            value = getattr(part, field.name)
            if isinstance(value, torch.Tensor):
                setattr(part, field.name, value.to(device, dtype))
    return weights


def _call(effect: Compute) -> Call:
    assert effect.fn is not None
    fn = effect.fn
    return lambda: fn(*effect.args)


def _seconds(call: Call) -> float:
    clock = WallClock()
    call()
    return clock.now()


def _alone(bench: Bench) -> Seconds:
    """Measured on half of the rows and on all; a line through both."""
    measured = {
        num: {name: min(_seconds(call) for _ in range(CALLS)) for name, call in bench.calls(num).items()}
        for num in (ROWS // 2, ROWS)
    }
    return lambda operator, rows: interpolate(
        tuple((num, times[operator]) for num, times in measured.items()), rows
    )


def _side_by_side(lanes: Lanes, *calls: Call) -> list[float]:
    """Seconds of each of two calls that are made again and again at the same time."""
    times: list[list[float]] = [[] for _ in calls]

    async def again(i: int) -> None:
        while min(map(len, times)) < CALLS:
            times[i].append(await Compute((), _seconds, (calls[i],)))

    async def both() -> None:
        for child in [await Spawn(again(i)) for i in range(len(calls))]:
            await child

    lanes.run(both())
    return [median(some) for some in times]


@torch.inference_mode()
def _search(bench: Bench, lanes: Lanes) -> Found:
    """The search on measured times, alone and on one of two cores beside the other."""
    alone, calls = _alone(bench), bench.calls(ROWS)
    decode_s, up_s = _side_by_side(lanes, calls["decode"], calls["up"])
    memory, compute = alone("decode", ROWS) / decode_s, alone("up", ROWS) / up_s
    return search(
        Layers(
            rows=ROWS,
            num_layers=bench.model.spec.num_layers,
            alone=alone,
            sharing={
                "memory": ((0.0, 0.0), (HALF, memory), (1.0, 1.0)),
                "compute": ((0.0, 0.0), (HALF, compute), (1.0, compute)),
            },
            levels=(HALF,),
        )
    )


def chosen_on_cpu(seed: int) -> Measured:
    """Time of a forward by the plan that is chosen, over one operator after another."""
    bench, cores = Bench("cpu", seed), own_cores()[:2]
    pinned, free = Lanes(2, cores=cores), Lanes(1)
    try:
        found = _search(bench, pinned)
        beside, predicted_s = min(found.tried, key=lambda tried: tried[1])
        calls = bench.forward(serial_plan(ROWS), free), bench.forward(beside, pinned)
        rounds = [[_seconds(call) for call in calls] for _ in range(ROUNDS)]
    finally:
        pinned.close()
        free.close()
    ratio = median(beside_s / serial_s for serial_s, beside_s in rounds)
    note = f"side by side {ratio:.2f}x, predicted {predicted_s / found.serial_s:.2f}x"
    if found.plan.is_serial:
        return Measured(1.0, f"chosen: one after another, the same plan; {note}")
    return Measured(ratio, f"chosen: {note}")


@torch.inference_mode()
def on_gpu(seed: int) -> Measured:
    """Decode attention and a product of a layer, one after the other over side by side."""
    if not torch.cuda.is_available():
        return Measured(0.0, "not measured: no GPU here")
    calls = Bench("cuda", seed, hidden=4096, layers=1).calls(ROWS)
    pair = [calls["decode"], calls["up"]]
    lanes = Lanes(2, "cuda")

    async def again(call: Call) -> None:
        for _ in range(CALLS):
            await Compute((), call)

    async def both() -> None:
        for child in [await Spawn(again(call)) for call in pair]:
            await child

    def side_by_side() -> None:
        lanes.run(both())
        torch.cuda.synchronize()

    def one_after_another() -> None:
        for _ in range(CALLS):
            for call in pair:
                call()
        torch.cuda.synchronize()

    one_after_another()
    ratios = [_seconds(one_after_another) / _seconds(side_by_side) for _ in range(ROUNDS)]
    lanes.close()
    return Measured(median(ratios), torch.cuda.get_device_name())


def between_steps(seed: int) -> Measured:
    """Time in which no step computes though there is work, steps formed ahead over one after another."""
    found = [(_waits_s(2, seed), _waits_s(1, seed)) for _ in range(ROUNDS)]
    ahead_s, after_s = (median(one[i][0] for one in found) for i in (0, 1))
    ratio, gain = (median(a[k] / b[k] for a, b in found) for k in (0, 1))
    us = f"{ahead_s * 1e6:.0f} of {after_s * 1e6:.0f} us"
    return Measured(ratio, f"{us}, {NUM_SEQS} sequences; a load takes {gain:.2f}x as long, on as many cores")


def _waits_s(depth: int, seed: int) -> tuple[float, float]:
    """From a step's end to the next one's begin, on the thread that computes them: the median. And from the
    first step's begin to the last one's end."""
    kernel = Kernel(WallClock(), seed=seed)
    plan = Plan(model="tiny:llama", use=(NanoFlow(),), prefix_cache=False, depth=depth)
    engine, model, _ = open_engine(plan, kernel)
    assert isinstance(engine, Engine)
    runner: Any = engine.runner
    forward, ran_s = runner._forward, []

    def timed(*args: Any) -> Any:
        began_s = kernel.now()
        scores = forward(*args)
        ran_s.append((began_s, kernel.now()))
        return scores

    runner._forward = timed
    arrivals = [Arrival(0.0, 64, 128)] * NUM_SEQS
    try:
        run_load(engine, arrivals, SyntheticRequests(arrivals, model.spec.vocab_size, kernel.rng("prompts")))
    finally:
        model.close()
    return median(b[0] - a[1] for a, b in pairwise(ran_s)), ran_s[-1][1] - ran_s[0][0]
