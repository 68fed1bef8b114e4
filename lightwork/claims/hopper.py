"""Hopper microbenchmarks: what probes find must predict what kernels and whole generations take.

Simulated: the authors' generation runs (their repository's logs), batches of 8 requests of 128 prompt and
128 generated tokens in eager PyTorch. Their tokens/s count prompts too: 1.91 requests/s are 488. The host is
the bound there, and its one constant is taken from a run that is no row here, a 3B model on the A100. Real: a
run of this project's probe on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import log
from statistics import median

from lightwork.claims import Lab, Measured, claim
from lightwork.cluster import CostModel, parse_place
from lightwork.cluster.probe import Report, survey
from lightwork.memory.kv import KVCache
from lightwork.models.presets import preset
from lightwork.runtime import Kernel, WallClock
from lightwork.serve.cost import ClusterCost, EagerCost
from lightwork.serve.loads import Arrival
from lightwork.serve.plan import BLOCK_SIZE, Plan, make_engine
from lightwork.serve.schedulers.prefill_first import PrefillFirst
from lightwork.serve.simulate import SyntheticRequests, run_load
from lightwork.serve.simulated_runner import SimulatedRunner

BATCH, PROMPT, OUTPUT = 8, 128, 128
TOKENS = PROMPT + OUTPUT
HELD_OUT_TOKENS_PER_S = 539.82
"""Of the authors' 3B model on the A100: bfloat16, batch 8."""
HELD_OUT_LAYERS = 26
"""Assumed: those of OpenLLaMA 3B; the logs do not say."""
HOST_S_PER_LAYER = BATCH * TOKENS / HELD_OUT_TOKENS_PER_S / OUTPUT / HELD_OUT_LAYERS
"""1.1 ms of Python and launches per layer, step and batch, on any device: one host is assumed for all."""
SWEEP_STEP = 1.5
"""Footprints of the probe's chase grow by this."""
WHOLE_SWEEP = 26.0
"""Steps in it: how far off a capacity is that was not found, or is not declared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One generation run. published: tokens/s."""

    model: str
    place: str
    dtype: str
    published: float


ROWS = (
    Row(model="llama-2-7b", place="sim:a100", dtype="bfloat16", published=488),
    Row(model="llama-2-7b", place="sim:h800", dtype="bfloat16", published=433),
    Row(model="llama-2-7b", place="sim:h800", dtype="float8", published=428),
    Row(model="llama-2-13b", place="sim:a100", dtype="bfloat16", published=383),
    Row(model="llama-2-13b", place="sim:h800", dtype="bfloat16", published=344),
    Row(model="llama-2-13b", place="sim:h800", dtype="float8", published=343),
)


@cache
def tokens_per_s(model: str, place: str, dtype: str, layer_s: float) -> float:
    """Prompt and generated tokens per second of one batch. layer_s: the host's; 0 leaves the device alone."""
    spec = preset(model)
    cost = EagerCost(
        ClusterCost(spec, CostModel(parse_place(place)), dtype=dtype, step_s=0.0), layer_s=layer_s
    )
    kernel = Kernel()
    kv = KVCache(BATCH * TOKENS // BLOCK_SIZE + BATCH, BLOCK_SIZE, prefix_cache=False)
    plan = Plan(use=(PrefillFirst(),), prefix_cache=False)
    engine = make_engine(plan, kernel, kv, SimulatedRunner(cost), spec.max_len, spec.vocab_size)
    batch = [Arrival(0.0, PROMPT, OUTPUT)] * BATCH
    run_load(engine, batch, SyntheticRequests(batch, spec.vocab_size, kernel.rng("prompts")))
    return BATCH * TOKENS / kernel.now()


def _generation(row: Row) -> None:
    """Declare the claim of one row."""
    kind = "bf16" if row.dtype == "bfloat16" else "fp8"
    device = row.place.removeprefix("sim:").upper()

    @claim(
        "hopper",
        title=f"generation, {row.model}, {kind}, batch 8, {device}, host-bound",
        paper=f"{row.published:g} tokens/s",
        expect=row.published,
        within=0.25,
        unit=" tokens/s",
    )
    def generated(lab: Lab) -> Measured:
        alone = tokens_per_s(row.model, row.place, row.dtype, 0.0)
        found = tokens_per_s(row.model, row.place, row.dtype, HOST_S_PER_LAYER)
        return Measured(found, f"the device alone {alone:.0f}")


for _row in ROWS:
    _generation(_row)


def _fp8_gain(model: str) -> Measured:
    def gain(layer_s: float) -> float:
        bf16, fp8 = (tokens_per_s(model, "sim:h800", dtype, layer_s) for dtype in ("bfloat16", "float8"))
        return fp8 / bf16

    return Measured(gain(HOST_S_PER_LAYER), f"the device alone {gain(0.0):.2f}x")


@claim(
    "hopper",
    title="fp8 over bf16, llama-2-7b on H800",
    paper="428 / 433: no gain, the host is the bound",
    expect=428 / 433,
    within=0.05,
)
def fp8_gains_nothing(lab: Lab) -> Measured:
    return _fp8_gain("llama-2-7b")


@claim(
    "hopper",
    title="fp8 over bf16, llama-2-13b on H800",
    paper="343 / 344: no gain, the host is the bound",
    expect=343 / 344,
    within=0.05,
)
def fp8_gains_nothing_on_13b(lab: Lab) -> Measured:
    return _fp8_gain("llama-2-13b")


@cache
def probed() -> tuple[float, Report]:
    """One full run of the probe, and its seconds."""
    clock = WallClock()
    start_s = clock.now()
    report = survey()
    return clock.now() - start_s, report


def _beside(report: Report) -> str:
    return f"a busy thread got {report.share:.0%} of a core"


@claim(
    "hopper",
    title="seconds of a run of the probe",
    paper="our bar: a minute",
    expect=60.0,
    within=0.0,
    bound="at most",
    mode="real",
    unit=" s",
)
def a_probe_is_quick(lab: Lab) -> Measured:
    seconds, report = probed()
    return Measured(seconds, f"{len(report.samples)} quantities; {_beside(report)}")


@claim(
    "hopper",
    title="median error of predicted times of kernels the probe has not seen",
    paper="our bar: 25 %",
    expect=0.25,
    within=0.0,
    bound="at most",
    mode="real",
    unit="",
)
def unseen_kernels_are_predicted(lab: Lab) -> Measured:
    _, report = probed()
    errors = [p.error for p in report.predictions]
    return Measured(median(errors), f"{len(errors)} kernels, worst {max(errors):.2f}; {_beside(report)}")


@claim(
    "hopper",
    title="sweep steps between the L1 capacity found and the one the system declares",
    paper="our bar: one step",
    expect=1.0,
    within=0.0,
    bound="at most",
    mode="real",
    unit=" steps",
)
def l1_is_found(lab: Lab) -> Measured:
    return _steps_off("l1")


@claim(
    "hopper",
    title="the same of L2",
    paper="our bar: one step",
    expect=1.0,
    within=0.0,
    bound="at most",
    mode="real",
    unit=" steps",
)
def l2_is_found(lab: Lab) -> Measured:
    return _steps_off("l2")


def _steps_off(name: str) -> Measured:
    """From the declared capacity to the nearest that was found; the whole sweep if none was."""
    report = probed()[1]
    caches = [m.bytes for m in report.machine.device.memories if m.name not in ("memory", "disk")]
    declared = report.declared.get(name)
    if declared is None or not caches:
        return Measured(WHOLE_SWEEP, f"{len(caches)} caches found, {len(report.declared)} declared")
    nearest = min(caches, key=lambda size: abs(log(size / declared)))
    note = f"found {nearest / 1024:.0f} KiB, declared {declared / 1024:.0f}; {_beside(report)}"
    return Measured(abs(log(nearest / declared)) / log(SWEEP_STEP), note)
