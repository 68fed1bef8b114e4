"""From a plan to an engine that computes on this machine: the model loaded, and what was derived for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from lightwork.errors import SpecError
from lightwork.kernels.cpu.formats import BF16_DOT, F32, INT8, PAGE
from lightwork.memory.kv import KVCache
from lightwork.models.precisions.stored import Stored
from lightwork.runtime.kernel import Kernel
from lightwork.serve.adapters import put_adapter
from lightwork.serve.beside import measured
from lightwork.serve.composing import compose
from lightwork.serve.engine import Engine
from lightwork.serve.fleet import Fleet
from lightwork.serve.plan import (
    BLOCK_SIZE,
    Plan,
    Setting,
    about,
    context,
    divided,
    kv_blocks,
    make_engine,
    make_kv,
    tier_blocks,
)
from lightwork.serve.runner import Runner
from lightwork.serve.training import Training
from lightwork.serve.training_runner import TrainingRunner

if TYPE_CHECKING:
    from lightwork.models import Model
    from lightwork.models.adapters import Adapters
    from lightwork.models.compiled import CompiledModel
    from lightwork.models.precisions import Precision
    from lightwork.models.spec import ModelSpec
    from lightwork.models.tokenizer import Tokenizer

    Served = Model | CompiledModel

Progress = Callable[[str, int, int], None]
SMALL_BYTES = 32e6
"""Weights below this stay in a core's cache; two threads of torch then wait longer than they compute."""


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
    each a process of this machine.

    progress(phase, done_bytes, total_bytes) is called while loading. Close the model when done. Raises
    CheckpointError, SpecError.
    """
    if plan.on.startswith("sim:"):
        raise SpecError(
            f"{plan.on} is simulated",
            expected="cpu or cuda:0",
            fix=f"lightwork sim {plan.model} --on {plan.on}",
        )
    if "router" in plan.techniques():
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
    model, kv_dtype, block_size, settings = _load(plan, chosen.get("precision"), progress)
    settings += _adapters(chosen.get("adapters"), model)
    longest = context(plan, model.spec)
    free = free_bytes(plan.on) if memory_bytes is None else memory_bytes
    blocks = kv_blocks(plan, model.spec, kv_dtype, int(longest.value), free, block_size)
    behind = tier_blocks(plan, model.spec.kv_bytes_per_token(kv_dtype) * block_size)
    kv = make_kv(plan, int(blocks.value), block_size, behind)
    composition = chosen.get("composition")
    make_runner: Callable[..., Runner] = runner_for(plan.on, model, moves=composition is not None)
    if shared is not None:
        make_runner = partial(make_runner, shared=shared)
    models: Collection[str] = model.adapters
    if composition is not None:
        make_runner, told = compose(plan, model, make_runner, free, progress, parts.get("name", "engine"))
        settings.append(told)
        models = [*model.variants.values()]
    runner = make_runner(kernel, model, kv)
    if "tuning" in chosen:
        runner, beside, more = _train_beside(chosen["tuning"], runner, kernel, model, kv)
        parts |= beside
        settings += more
    max_len, vocab_size = int(longest.value), model.spec.vocab_size
    engine = make_engine(plan, kernel, kv, runner, max_len, vocab_size, models, **parts)
    if isinstance(runner, TrainingRunner):
        runner.publish = partial(put_adapter, engine, model)
    if kernel.trace is not None:
        derived = {"kv_blocks": kv.total, "block_size": block_size, "tier_blocks": behind}
        kernel.trace.about = about(plan, **derived, max_len=max_len)
    settings += [*_threads(plan, model), longest, blocks, *divided(plan, kv), _scheduler(chosen, engine)]
    return engine, model, settings


def _scheduler(chosen: Mapping[str, Any], engine: Engine) -> Setting:
    asked = "as asked" if "scheduler" in chosen else "the default"
    asked += "; models take turns" * ("composition" in chosen)
    return Setting("scheduler", repr(engine.scheduler), asked)


def _train_beside(
    tuning: Any, runner: Runner, kernel: Kernel, model: Served, kv: KVCache
) -> tuple[Runner, dict[str, Any], list[Setting]]:
    """The runner that trains too, what its engine takes, and what was derived."""
    trainer = tuning.begin(model, model.spec.max_len)
    training = Training(trainer.lengths, trainer.num_layers)
    cost = measured(trainer, type(runner), model, kv.block_size)
    settings = [
        Setting(
            "training", f"{len(trainer.lengths)} sequences", f"{sum(trainer.lengths)} tokens of {tuning.data}"
        ),
        Setting(
            "training_s",
            f"{(cost.forward[1] + cost.back[1]) * trainer.num_layers + cost.head[1]:.2g} a token",
            "measured",
        ),
    ]
    beside = {"training": training, "predict": lambda step: sum(cost.stages(step))}
    return TrainingRunner(kernel, runner, trainer, training), beside, settings


def _load(
    plan: Plan, precision: Precision | None, progress: Progress | None
) -> tuple[Served, str, int, list[Setting]]:
    """The model, the type of its keys and values, tokens of a KV block, and why."""
    from lightwork import models

    if compiles(plan.on):
        compiled = models.load_compiled(plan.model, precision=precision or Stored(), progress=progress)
        chosen = Setting("precision", repr(precision or Stored()), compiled.numbers.reason)
        settings = [chosen, *_quality(plan.model, precision, compiled)]
        kv_dtype = {F32: "float32", BF16_DOT: "bfloat16", INT8: "int8"}[compiled.numbers.kv]
        return compiled, kv_dtype, PAGE, [*settings, Setting("kv_dtype", kv_dtype, "of that precision")]
    if precision is not None:
        raise SpecError(
            f"{precision!r} is computed by the compiled CPU step only",
            expected="--on cpu, with the extra 'cpu'",
            fix='pip install "lightwork[cpu]"' if plan.on == "cpu" else "--on cpu",
        )
    dtype = "float32" if plan.on == "cpu" else "bfloat16"
    reason = (
        "exact on a CPU; without numba, torch computes" if plan.on == "cpu" else "half the bytes of float32"
    )
    model = models.load(plan.model, dtype=dtype, device=plan.on, progress=progress)
    return model, dtype, BLOCK_SIZE, [Setting("dtype", dtype, reason)]


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


def _adapters(source: Adapters | None, model: Served) -> list[Setting]:
    """Let the model compute with the adapters that are there, and what each of them takes."""
    if source is None:
        return []
    found = source.read(model.spec)
    for adapter in found:
        model.adapters.put(adapter)
    told = ", ".join(f"{adapter.name} ({adapter.nbytes / 1e6:.2f} MB)" for adapter in found)
    return [Setting("adapters", told, f"float32, rank up to {max(adapter.rank for adapter in found)}")]


def compiles(place: str) -> bool:
    """Whether a place computes with the compiled CPU step, rather than with torch."""
    return place == "cpu" and find_spec("numba") is not None


def import_backend(place: str) -> None:
    """Import what a place computes with, the slow part of a start. Raises MissingExtraError."""
    if compiles(place):
        import lightwork.models.compiled  # noqa: F401
    else:
        from lightwork.models import import_models

        import_models()


def runner_for(place: str, model: Served, *, moves: bool = False) -> Callable[[Kernel, Any, KVCache], Runner]:
    """Triton's kernels on a GPU, if they are installed and know the model; otherwise the model itself.

    moves: where its weights are changes between steps, which recorded steps do not know.
    """
    if not moves and place.startswith("cuda") and find_spec("triton") is not None:
        from lightwork.models.gpu_step import supports
        from lightwork.serve.gpu_runner import GpuRunner

        if supports(model.spec):
            return GpuRunner
    from lightwork.serve.local_runner import LocalRunner

    return LocalRunner


def _threads(plan: Plan, model: Served) -> list[Setting]:
    """Give a CPU model the threads it can use."""
    if plan.on != "cpu":
        return []
    if plan.threads is not None:
        model.set_threads(plan.threads)
        return [Setting("threads", str(plan.threads), "as asked")]
    small = model.nbytes < SMALL_BYTES and not compiles(plan.on)
    threads = 1 if small else len(own_cores())
    model.set_threads(threads)
    reason = "its steps are shorter than waking another thread" if small else "one per core"
    return [Setting("threads", str(threads), reason)]


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
