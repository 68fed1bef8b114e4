"""NanoFlow: nano-operations side by side, against one operator after another.

Simulated: LLaMA-2-70B on eight A100, batches of 2,048 rows. How long operators take alone is the
publication's table, for a batch whose KV fills the memory (its decode attention reads as much as the weights
leave); on other rows and contexts they scale as our prices do. What the table lacks of a step is taken from
the publication's 1106 tokens/s of one operator after another, which is no row here. Speeds on shares of the
device are the preset's. One pipeline is searched, on the table, and serves every load. In the rows, host work
is hidden, as theirs is, and an output's limit, which the scheduler knows, is its length. What copies to host
memory cost the kernels beside them is not modelled.

The baselines' rows (vLLM 469 tokens/s to TensorRT-LLM 735) are engines of their time and not simulated: one
operator after another does 1106 in the publication's own ablation. So of its 1.91x over TensorRT-LLM 1.2x is
overlap, and the rest, 1.5x and more, a better serial engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from lightwork.claims import Lab, Measured, claim
from lightwork.claims._nano_real import between_steps, chosen_on_cpu, on_gpu
from lightwork.cluster import CostModel, parse_place
from lightwork.memory.layouts.block_groups import BlockGroups
from lightwork.memory.tiers.host_memory import HostMemory
from lightwork.models.presets import preset
from lightwork.parallel.op_plan import OpPlan, serial_plan
from lightwork.parallel.operator_times import OperatorTimes
from lightwork.plan.nano import Found, Layers, search
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.cost import ClusterCost
from lightwork.serve.engine import Engine
from lightwork.serve.lengths import Length
from lightwork.serve.lengths.normal import Normal
from lightwork.serve.lengths.published import Published
from lightwork.serve.loads.burst import Burst
from lightwork.serve.overlap_cost import OverlapCost
from lightwork.serve.plan import Plan
from lightwork.serve.schedulers.nano_flow import NanoFlow
from lightwork.serve.simulate import SyntheticRequests, run_load, simulate
from lightwork.serve.simulated import open_simulated
from lightwork.serve.simulated_runner import SimulatedRunner

SPEC = preset("llama-2-70b")
COSTS = CostModel(parse_place("sim:a100x8"))
TP, ROWS, DTYPE = 8, 2048, "bfloat16"
OPTIMAL = 1857.0
"""Tokens per second and device of the publication, if nothing but matrix products took time."""
ALONE_MS = {"qkv": 16.1, "out": 16.0, "up": 69.9, "down": 35.0, "decode": 35.6, "prefill": 4.6}
NETWORK_MS = 47.9
SERIAL = 1106.0
"""Held out: tokens per second and device of one operator after another."""
SERIAL_OPS = serial_plan(ROWS, TP).ops
REST_S = ROWS / TP / SERIAL - (sum(ALONE_MS.values()) + NETWORK_MS) / 1e3
"""Of a step that is in no row of the table, 6.4 ms: norms, sampling, gaps between kernels."""


def _batch() -> list[tuple[int, int]]:
    """The table's: half of it decodes, whose keys and values fill the memory, half prompts of 512."""
    decodes = ROWS // 2
    known = ClusterCost(SPEC, COSTS, dtype=DTYPE, tp=TP).kv_tokens() // decodes
    return [(known, 1)] * decodes + [(0, 512)] * (ROWS // 2 // 512)


@cache
def _published_over_ours(operator: str) -> float:
    """Of an operator's time on the table's batch."""
    ours = OperatorTimes(SPEC, COSTS, _batch(), dtype=DTYPE, tp=TP)
    name = operator.partition("_")[0]
    if name in ALONE_MS:
        return ALONE_MS[name] / 1e3 / SPEC.num_layers / ours(operator, ROWS)
    exchanged_s = sum(ours(op.operator, ROWS) for op in SERIAL_OPS if op.operator.startswith("reduce"))
    return NETWORK_MS / 1e3 / SPEC.num_layers / exchanged_s


class Alone:
    """The table's times, for any step."""

    def __init__(self, chunks: Sequence[tuple[int, int]]) -> None:
        self._ours = OperatorTimes(SPEC, COSTS, chunks, dtype=DTYPE, tp=TP)

    def __call__(self, operator: str, rows: int) -> float:
        return _published_over_ours(operator) * self._ours(operator, rows)


@cache
def _layers() -> Layers:
    """The table."""
    return Layers(
        rows=ROWS,
        num_layers=SPEC.num_layers,
        alone=Alone(_batch()),
        sharing=COSTS.cluster.device.sharing,
        tp=TP,
    )


@cache
def _found() -> Found:
    return search(_layers())


def _per_device(seconds: float) -> float:
    """Tokens per second and device, if the layers of a batch take so long."""
    return ROWS / (seconds + REST_S) / TP


def _words(plan: OpPlan) -> str:
    stops = sorted({op.stop for op in plan.ops if op.operator == "qkv"})
    return f"attention on rows up to {', '.join(map(str, stops))}; {len(plan.ops)} nano-operations"


# Accepted from 1.15 to 1.3.
@claim(
    "nanoflow",
    title="one operator after another over the pipeline found, on the published times alone",
    paper="1323 / 1106 = 1.20x; our bounds 1.15 to 1.3",
    expect=1.225,
    within=0.061,
)
def overlap(lab: Lab) -> Measured:
    return Measured(_found().gain, _words(_found().plan))


# Accepted from 59 to 72 percent.
@claim(
    "nanoflow",
    title="its share of the optimum",
    paper="59 to 72 % of 1857 tokens/s and device",
    expect=0.655,
    within=0.099,
    unit="",
)
def of_the_optimum(lab: Lab) -> float:
    return _per_device(_found().seconds) / OPTIMAL


@claim(
    "nanoflow",
    title="tokens/s and device: the pipeline's nano-operations one after another",
    paper="982 tokens/s",
    expect=982,
    within=0.1,
    unit=" tokens/s",
)
def without_overlap(lab: Lab) -> float:
    plan = _found().plan
    one_lane = replace(plan, ops=tuple(op._replace(lane="all", share=1.0) for op in plan.ops))
    return _per_device(_layers().seconds(one_lane))


@claim(
    "nanoflow",
    title="the pipeline",
    paper="1323 tokens/s",
    expect=1323,
    within=0.1,
    unit=" tokens/s",
)
def pipeline(lab: Lab) -> float:
    return _per_device(_found().seconds)


@dataclass(frozen=True, slots=True)
class Row:
    """A load of `num` requests, and what the publication's engine makes of it, tokens/s and device."""

    words: str
    lengths: Length
    num: int
    published: float


MAX_LEN = SPEC.max_len
ROWS_SERVED = (
    Row("prompts of 512, outputs of 512", Normal(prompt=512, output=512, spread=0.0), 3000, 1286),
    Row("1024 and 512", Normal(prompt=1024, output=512, spread=0.0), 2000, 1263),
    Row("512 and 1024", Normal(prompt=512, output=1024, spread=0.0), 2000, 1212),
    Row("Splitwise's lengths", Published(trace="azure-conversation", max_len=MAX_LEN), 2500, 1259),
    Row("LMSYS's", Published(trace="lmsys", max_len=MAX_LEN), 8000, 1247),
    Row("ShareGPT's", Published(trace="sharegpt", max_len=MAX_LEN), 5000, 1272),
)
HOST_GB = 500.0
MIDDLE = (0.3, 0.7)
"""Part of a run that counts: all requests come at once, so batches fill up first and run dry last."""


@cache
def served(row: Row, plan: OpPlan, seed: int, host: bool = False) -> float:
    """Tokens computed per second and device."""
    trace = Trace("simulated: sim:a100x8")
    kernel = Kernel(seed=seed, trace=trace)
    engine, _ = open_simulated(
        Plan(
            model="shape:llama-2-70b",
            on="sim:a100x8",
            use=(NanoFlow(), *((HostMemory(gb=HOST_GB), BlockGroups()) if host else ())),
            prefix_cache=False,
            max_seqs=ROWS,
            max_waiting=1 << 20,
        ),
        kernel,
    )
    assert isinstance(engine, Engine)
    assert isinstance(engine.runner, SimulatedRunner)
    engine.runner.cost = OverlapCost(SPEC, COSTS, plan, dtype=DTYPE, tp=TP, step_s=REST_S, times=Alone)
    arrivals = Burst(num_requests=row.num, lengths=row.lengths).arrivals(kernel.rng("load"))
    run_load(engine, arrivals, SyntheticRequests(arrivals, SPEC.vocab_size, kernel.rng("prompts")))
    first_s, last_s = (part * kernel.now() for part in MIDDLE)
    steps = [s for s in trace.spans if s.kind == "step" and first_s <= s.start_s < last_s]
    rows: int = sum(chunk[2] for step in steps for chunk in (step.args or {})["chunks"])
    return rows / (steps[-1].end_s - steps[0].start_s) / TP


def _serve(row: Row) -> None:
    """Declare the claim of one row."""

    @claim(
        "nanoflow",
        title=f"served: {row.words}",
        paper=f"{row.published:g} tokens/s",
        expect=row.published,
        within=0.1,
        unit=" tokens/s",
    )
    def tokens_per_s(lab: Lab) -> float:
        return served(row, _found().plan, lab.seed)


for _row in ROWS_SERVED:
    _serve(_row)


@claim(
    "nanoflow",
    title="served: 512 and 512, with the KV of what has ended copied to host memory",
    paper="1290 tokens/s",
    expect=1290,
    within=0.1,
    unit=" tokens/s",
)
def with_offload(lab: Lab) -> Measured:
    without = served(ROWS_SERVED[0], _found().plan, lab.seed)
    found = served(ROWS_SERVED[0], _found().plan, lab.seed, host=True)
    note = f"{found / without - 1:+.1%}, theirs -2.5 %; here steps wait for blocks still being copied"
    return Measured(found, note)


@claim(
    "nanoflow",
    title="served: 512 and 512, the pipeline over one operator after another on the same engine",
    paper="1323 / 1106 = 1.20x; the 1.91x over TensorRT-LLM is that and a better serial engine",
    expect=1.2,
    within=0.1,
)
def of_overlap_alone(lab: Lab) -> Measured:
    plain = serial_plan(ROWS, TP)
    first, *others = (
        served(row, _found().plan, lab.seed) / served(row, plain, lab.seed)
        for row in (ROWS_SERVED[0], *ROWS_SERVED[3:])
    )
    told = ", ".join(f"{ratio:.2f}x" for ratio in others)
    return Measured(first, f"on the three loads of the 1.91x, whose contexts are shorter: {told}")


FEW = 16


@claim(
    "nanoflow",
    title="host work of a step that is hidden at depth 2: 16 decodes of LLaMA-3-8B on one H100",
    paper="hidden: batch i + 1 is formed while i runs; our bar 0.9 of it",
    expect=0.9,
    within=0.0,
    bound="at least",
    unit="",
)
def host_work_is_hidden(lab: Lab) -> Measured:
    plain = Plan(model="shape:llama-3-8b", on="sim:h100x1", use=(NanoFlow(),))
    load = Burst(num_requests=FEW, lengths=Normal(prompt=512, output=512, spread=0.0))
    after, ahead = (
        simulate(replace(plain, depth=depth), load, seed=lab.seed, keep_spans=False).summary
        for depth in (1, 2)
    )
    host_s = after.steps * parse_place(plain.on).device.step_s
    gain = ahead.output_tokens_per_s / after.output_tokens_per_s
    return Measured((after.duration_s - ahead.duration_s) / host_s, f"{gain:.2f}x the tokens/s")


# -- for real


@claim(
    "nanoflow",
    title="this CPU, two pinned threads: the plan chosen over one operator after another, time",
    paper="- (our bar 1.03)",
    expect=1.03,
    within=0.0,
    bound="at most",
    mode="real",
)
def on_this_cpu(lab: Lab) -> Measured:
    return chosen_on_cpu(lab.seed)


@claim(
    "nanoflow",
    title="decode attention beside matrix products on one GPU, over one after the other",
    paper="- (our bar 1.1, on an H200)",
    expect=1.1,
    within=0.0,
    bound="at least",
    mode="real",
)
def on_a_gpu(lab: Lab) -> Measured:
    return on_gpu(lab.seed)


@claim(
    "nanoflow",
    title="time between two steps, formed ahead (depth 2) over one after another, on this CPU",
    paper="hidden: the next batch is formed while a step runs; our bar 0.1",
    expect=0.1,
    within=0.0,
    bound="at most",
    mode="real",
)
def scheduling_is_hidden(lab: Lab) -> Measured:
    return between_steps(lab.seed)
