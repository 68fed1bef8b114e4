"""From a plan to an engine that computes on this machine: the model loaded, and what was derived for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from lightwork.decode.constraints import grammars
from lightwork.errors import SpecError
from lightwork.kernels.cpu.formats import BF16_DOT, F32, INT8_DOT, PAGE
from lightwork.memory.kv import KVCache
from lightwork.memory.residencies import Residency
from lightwork.models import compiles
from lightwork.models.precisions.stored import Stored
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.progress import Progress
from lightwork.serve.adapters import put_adapter
from lightwork.serve.beside import train_beside
from lightwork.serve.composing import compose
from lightwork.serve.engine import Engine
from lightwork.serve.fleet import Fleet
from lightwork.serve.plan import (
    BLOCK_SIZE,
    Plan,
    Setting,
    about,
    adapters_setting,
    context,
    divided,
    kv_blocks,
    make_engine,
    make_kv,
    mixes,
    overlapped,
    tier_blocks,
)
from lightwork.serve.runner import Runner
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.training_runner import TrainingRunner

if TYPE_CHECKING:
    from lightwork.decode.proposers import Drafter
    from lightwork.models import Model
    from lightwork.models.adapters import Adapters
    from lightwork.models.compiled import Arrive, CompiledModel
    from lightwork.models.precisions import Precision
    from lightwork.models.spec import ModelSpec
    from lightwork.models.tokenizer import Tokenizer
    from lightwork.serve.forming import Forming
    from lightwork.serve.workers import Workers

    Local = Model | CompiledModel
    Served = Local | Workers

SMALL_BYTES = 32e6
"""Weights below this stay in a core's cache; two threads of torch then wait longer than they compute."""
CPU_CHUNK, CPU_STEP = 128, 1 << 35
"""Tokens of a step, and their number times the model's parameters: from some 32 rows on a CPU is busy, and
longer steps only keep those waiting who generate. Short ones of small models cost more to form."""


class AnyModel(Protocol):
    """What a server needs of a model, wherever it computes.

    nbytes: of its weights. variants: others of its shape that can be asked for, by name, and what requests
    say in `model` to mean them; may change while it serves.
    """

    @property
    def spec(self) -> ModelSpec: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def generation(self) -> dict[str, Any]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def variants(self) -> Mapping[str, str]: ...
    def warm_up(self) -> None: ...
    def close(self) -> None: ...


def open_engine(
    plan: Plan, kernel: Kernel, progress: Progress | None = None
) -> tuple[Engine | Fleet, AnyModel, list[Setting]]:
    """Load the model and build the engine that serves it for real, or the engines behind the plan's router,
    each a process of this machine or a Ray actor.

    progress(phase, done_bytes, total_bytes) is called while loading. Close the engine and the model when
    done. Raises CheckpointError, SpecError.
    """
    if plan.on.startswith("sim:"):
        raise SpecError(
            f"{plan.on} is simulated",
            expected="cpu, cuda:0 or ray:",
            fix=f"lightwork sim {plan.model} --on {plan.on}",
        )
    chosen = plan.techniques()
    if "tuning" in chosen:  # between operators torch's threads would spin, on the cores that steps need
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if "router" in chosen or plan.on.startswith("ray:"):
        from lightwork.serve.deployment import open_deployment

        return open_deployment(plan, kernel, progress)
    return open_one(plan, kernel, progress)


def open_one(
    plan: Plan,
    kernel: Kernel,
    progress: Progress | None = None,
    *,
    memory_bytes: int | None = None,
    shared: int | None = None,
    **parts: Any,
) -> tuple[Engine, Served, list[Setting]]:
    """One engine in this process, whatever the plan's router.

    memory_bytes: free for it; None: all that is free. shared: memory for keys and values that others map.
    parts: what else `Engine` takes.
    """
    chosen = plan.techniques()
    load = _load if num_ranks(plan) == 1 else _start_workers
    model, kv_dtype, block_size, settings = load(plan, chosen.get("precision"), progress)
    settings += [_adapters(chosen["adapters"], _local(model))] if "adapters" in chosen else []
    plan, why_scheduler = scheduled(plan, model.spec)
    longest = context(plan, model.spec)
    free = free_bytes(plan.on) if memory_bytes is None else memory_bytes
    blocks = kv_blocks(plan, model.spec, kv_dtype, int(longest.value), free, block_size)
    block_bytes = model.spec.kv_bytes_per_token(kv_dtype) * block_size
    kv = make_kv(plan, int(blocks.value), block_size, tier_blocks(plan, block_bytes))
    composition = chosen.get("composition")
    make_runner = runner_for(plan.on, model, plain=composition is None, ahead=plan.depth > 1)
    if shared is not None:
        make_runner = partial(make_runner, shared=shared)
    models: Collection[str] = model.adapters
    if composition is not None:
        name = parts.get("name", "engine")
        make_runner, told = compose(plan, _local(model), make_runner, free, progress, name)
        settings.append(told)
        models = [*model.variants.values()]
    threads, runner = _threads(plan, model), make_runner(kernel, model, kv)
    max_len, vocab_size = int(longest.value), model.spec.vocab_size
    runner, beside, more = _beside(plan, max_len, runner, kernel, model, kv, timed="predict" in parts)
    parts |= {**beside, "put_probes": _local(model).set_probes if num_ranks(plan) == 1 else None}
    parts |= {"constrain": grammars(model.tokenizer, vocab_size).matcher}
    engine = make_engine(plan, kernel, kv, runner, max_len, vocab_size, models, **parts)
    if isinstance(runner, TrainingRunner):
        runner.publish = partial(put_adapter, engine, _local(model))
    _tell(plan, engine, int(blocks.value), block_bytes, reads_once=model.reads_once)
    settings += [*more, *threads, longest, blocks, *divided(plan, kv)]
    settings += [_scheduler(chosen, engine, why_scheduler), *overlapped(plan)]
    return engine, model, settings


def scheduled(plan: Plan, spec: ModelSpec) -> tuple[Plan, str]:
    """With steps of the length that suits a model on this machine, if nobody chose a scheduler; and why."""
    chosen, chunk = plan.techniques(), Sarathi().chunk
    if "scheduler" in chosen:
        return plan, "as asked"
    if plan.on == "cpu" and "tuning" not in chosen and (plan.pp or 1) == 1:
        chunk = min(chunk, max(CPU_CHUNK, CPU_STEP // spec.num_params))
        chunk = 1 << (chunk.bit_length() - 1)
    if chunk == Sarathi().chunk:
        return plan, "the default"
    reason = f"a CPU computes no more of {spec.num_params / 1e6:.0f} M parameters in longer steps"
    return replace(plan, use=(*plan.use, Sarathi(chunk=chunk))), reason


def _scheduler(chosen: Mapping[str, Any], engine: Engine, asked: str) -> Setting:
    asked += "; models take turns" * ("composition" in chosen and not mixes(chosen))
    return Setting("scheduler", repr(engine.scheduler), asked)


def _load(
    plan: Plan, precision: Precision | None, progress: Progress | None
) -> tuple[Served, str, int, list[Setting]]:
    """The model, the type of its keys and values, tokens of a KV block, and why."""
    from lightwork import models

    residency: Residency[Any] | None = plan.techniques().get("residency")
    if compiles(plan.on) and not mixes(plan.techniques()):
        stored, arrive = precision or Stored(), _arrive(residency)
        compiled = models.load_compiled(plan.model, precision=stored, progress=progress, arrive=arrive)
        settings = [Setting("precision", repr(stored), compiled.numbers.reason)]
        if residency is None:
            settings += _quality(plan.model, precision, compiled)
        else:  # to measure what rounding costs, all weights would have to be there
            settings.append(_streaming(residency, compiled.weights.nbytes, compiled.nbytes, "each pass"))
        kv_dtype = {F32: "float32", BF16_DOT: "bfloat16", INT8_DOT: "int8"}[compiled.numbers.kv]
        return compiled, kv_dtype, PAGE, [*settings, Setting("kv_dtype", kv_dtype, "of that precision")]
    if (asked := precision or residency) is not None:
        raise SpecError(
            f"{asked!r} is computed by the compiled CPU step only",
            expected="--on cpu, with the extra 'cpu'",
            fix='pip install "lightwork[cpu]"' if plan.on == "cpu" else "--on cpu",
        )
    dtype = "float32" if plan.on == "cpu" else "bfloat16"
    torch_computes = "with shared blocks" if mixes(plan.techniques()) else "without numba"
    reason = (
        f"exact on a CPU; {torch_computes}, torch computes"
        if plan.on == "cpu"
        else "half the bytes of float32"
    )
    model = models.load(plan.model, dtype=dtype, device=plan.on, progress=progress)
    return model, dtype, BLOCK_SIZE, [Setting("dtype", dtype, reason)]


def _arrive(residency: Residency[Any] | None) -> Arrive | None:
    """How weights come that are not all to be in memory."""
    if residency is None:
        return None
    from lightwork.memory.streamed_weights import streamed

    return partial(streamed, residency)


def _streaming(residency: Residency[Any], here: int, nbytes: int, whose: str) -> Setting:
    """How much of the weights is in memory."""
    value = f"{here / 1e6:.4g} of {nbytes / 1e6:.4g} MB"
    return Setting("weights", value, f"{residency!r}; the others come from disk for {whose}")


def num_ranks(plan: Plan) -> int:
    """Processes that compute one step together, on a real place."""
    return (plan.tp or 1) * (plan.pp or 1)


def _start_workers(
    plan: Plan, precision: Precision | None, progress: Progress | None
) -> tuple[Served, str, int, list[Setting]]:
    """As `_load`, for a model that is cut over processes."""
    from lightwork.serve.workers import start_workers

    tp, pp = plan.tp or 1, plan.pp or 1
    if plan.on != "cpu" or precision is not None or min(tp, pp) < 1:
        raise SpecError(
            f"{tp} tensor-parallel ranks times {pp} stages on {plan.on}, {precision or 'float32'}",
            expected="on cpu, without a precision: processes of this machine that compute in float32",
            fix="leave tp and pp out, or the precision",
        )
    threads = None if plan.threads is None else max(1, plan.threads // (tp * pp))
    residency = plan.techniques().get("residency")
    workers = start_workers(
        plan.model,
        tp=tp,
        pp=pp,
        cores=own_cores(),
        threads=threads,
        residency=residency,
        progress=progress,
    )
    settings = [
        Setting("dtype", "float32", "what workers compute in"),
        Setting("tp", str(tp), "processes that share each layer"),
        Setting("pp", str(pp), "stages, and steps at once"),
        Setting("threads", str(workers.threads), "of each process"),
    ]
    if residency is not None:
        largest = max(workers.held, key=lambda held: held.resident_bytes)
        whose = "each pass, to each rank; this is the largest"
        settings.append(_streaming(residency, largest.resident_bytes, largest.nbytes, whose))
    return workers, "float32", BLOCK_SIZE, settings


def _quality(uri: str, precision: Precision | None, model: CompiledModel) -> list[Setting]:
    """What rounding costs: perplexity of the model's held-out text, as stored and as served."""
    from lightwork import models
    from lightwork.models.held_out import perplexity, read_held_out

    texts = read_held_out(models.resolve(uri)) if precision is not None else []
    if not texts:
        return []
    stored = models.load_compiled(uri, precision=Stored())
    before, after = perplexity(stored, texts), perplexity(model, texts)
    stored.close()
    num_tokens = sum(int(text.scored[1:].sum()) for text in texts)
    value = f"{before:.4f} -> {after:.4f} ({after / before - 1:+.2%})"
    return [Setting("perplexity", value, f"of {num_tokens} held-out tokens, as stored and as served")]


def _local(model: Served) -> Local:
    """A model in this process. Raises SpecError for one that is processes."""
    from lightwork.serve.workers import Workers

    if isinstance(model, Workers):
        model.close()
        raise SpecError(
            "adapters, experts and training need the whole model in one process",
            expected="neither tp nor pp",
            fix="leave them out",
        )
    return model


def _adapters(source: Adapters, model: Local) -> Setting:
    """Let the model compute with the adapters that are there, and what each of them takes."""
    found = source.read(model.spec)
    for adapter in found:
        model.adapters.put(adapter)
    return adapters_setting(found)


def import_backend(place: str) -> None:
    """Import what a place computes with, the slow part of a start. Raises MissingExtraError."""
    if place.startswith("ray:"):
        return  # actors do
    if compiles(place):
        import lightwork.models.compiled  # noqa: F401
    else:
        from lightwork.models import import_models

        import_models()


def runner_for(
    place: str, model: Served, *, plain: bool = True, ahead: bool = False
) -> Callable[..., Runner]:
    """Triton's kernels on a GPU, if they are installed and know the model; otherwise the model itself, or the
    processes that it is.

    plain: its own weights compute all steps, as recorded ones expect. ahead: each step is formed while the
    one before computes.
    """
    if ahead:
        return partial(runner_for(place, model, plain=plain), ahead=True)
    if plain and place.startswith("cuda") and find_spec("triton") is not None:
        from lightwork.models.gpu_step import supports
        from lightwork.serve.gpu_runner import GpuRunner

        if supports(model.spec):
            return GpuRunner
    from lightwork.serve.local_runner import LocalRunner
    from lightwork.serve.workers import Workers
    from lightwork.serve.workers_runner import WorkersRunner

    return WorkersRunner if isinstance(model, Workers) else LocalRunner


def _threads(plan: Plan, model: Served) -> list[Setting]:
    """Give a CPU model the threads it can use."""
    if plan.on != "cpu" or num_ranks(plan) > 1:
        return []
    if plan.threads is not None:
        model.set_threads(plan.threads)
        return [Setting("threads", str(plan.threads), "as asked")]
    small = model.nbytes < SMALL_BYTES and (mixes(plan.techniques()) or not compiles(plan.on))
    threads = 1 if small else len(own_cores())
    model.set_threads(threads)
    reason = "its steps are shorter than waking another thread" if small else "one per core"
    return [Setting("threads", str(threads), reason)]


def _beside(
    plan: Plan, max_len: int, runner: Runner, kernel: Kernel, model: Served, kv: KVCache, *, timed: bool
) -> tuple[Runner, dict[str, Any], list[Setting]]:
    """What is measured of a model for training or drafts before it serves: the runner, what an engine takes
    besides, and what was found, to which is added what drafts take, once it is known who drafts. Where rows
    are not measured, drafts are given rows by an assumption.

    timed: whether it is known already what steps take.
    """
    chosen = plan.techniques()
    if "tuning" in chosen:
        return train_beside(chosen["tuning"], runner, kernel, _local(model), kv)
    if "proposer" not in chosen or timed:
        return runner, {}, []
    from lightwork.serve.local_runner import LocalRunner
    from lightwork.serve.row_times import measure_rows

    if not isinstance(runner, LocalRunner):
        return runner, {}, []
    times = measure_rows(model, kv.block_size)
    (few, few_s), (many, many_s) = times.curve[0], times.curve[-1]
    value = f"{few_s * 1e3:.2g} ms for {few:g}, {many_s * 1e3:.2g} ms for {many:g}"
    told = [Setting("row_times", value, "measured; drafts get rows by it")]
    forming = partial(_forming, told, model.spec.vocab_size, plan.max_seqs, max_len)
    return runner, {"predict": times.predict, "forming": forming}, told


def _forming(
    settings: list[Setting], vocab_size: int, max_seqs: int, max_len: int, drafter: Drafter
) -> Forming:
    """What the plan's drafter takes, measured."""
    from lightwork.serve.form_times import measure_forming

    times = measure_forming(drafter, vocab_size, max_seqs=max_seqs, max_len=max_len)
    one_s, all_s = (times.seconds(1, rows, 0) for rows in (1, drafter.k))
    value = f"{one_s * 1e3:.2g} ms for a row, {all_s * 1e3:.2g} ms for {drafter.k}"
    settings.append(Setting("form_times", value, "measured; what drafts take beside their rows"))
    return times


def _tell(plan: Plan, engine: Engine, num_blocks: int, block_bytes: int, *, reads_once: bool) -> None:
    """Tell the trace, if there is one, what is served and what was derived for it."""
    from lightwork.serve.form_times import FormTimes
    from lightwork.serve.row_times import RowTimes

    trace, kv = engine.kernel.trace, engine.kv
    if trace is None:
        return
    sizes = {"kv_blocks": kv.total, "block_size": kv.block_size, "kv_bytes": num_blocks * block_bytes}
    sizes |= {"tier_blocks": tier_blocks(plan, block_bytes), "max_len": engine.limits.max_len}
    # What was measured decides which drafts get rows: who serves the same load again needs the same figures.
    times = {"row_times": getattr(engine.predict, "__self__", None), "form_times": engine.forming}
    measured = {name: asdict(t) for name, t in times.items() if isinstance(t, RowTimes | FormTimes)}
    trace.about = about(plan, **sizes, **measured, reads_once=reads_once)


def free_bytes(place: str) -> int:
    """Free memory of a real place, bytes."""
    if place.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(place)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def own_cores() -> list[int]:
    """The cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
