"""A model, a place and techniques, put together.

What nobody set is derived, and every derived value has its reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from lightwork.decode.proposers import Proposer
from lightwork.decode.verifiers import Verifier
from lightwork.errors import CapacityError, SpecError
from lightwork.kernels.cpu.formats import BF16_DOT, F32, INT8, PAGE
from lightwork.memory.kv import KVCache
from lightwork.models.precisions.stored import Stored
from lightwork.runtime.kernel import Kernel
from lightwork.serve.engine import Engine
from lightwork.serve.runner import Runner
from lightwork.serve.schedulers import Scheduler
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Limits
from lightwork.techniques import kind_of, parse_all

if TYPE_CHECKING:
    from lightwork.models import Model
    from lightwork.models.compiled import CompiledModel
    from lightwork.models.precisions import Precision
    from lightwork.models.spec import ModelSpec

    Served = Model | CompiledModel

BLOCK_SIZE = 16
SMALL_BYTES = 32e6
"""Weights below this stay in a core's cache; two threads of torch then wait longer than they compute."""

SERVED_KINDS = ("scheduler", "proposer", "verifier", "precision", "router")


class Setting(NamedTuple):
    """One derived value, and why it is what it is."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to serve, where, and with which techniques (objects, or the texts that name them).

    model: `tiny:llama`, `hf:./folder`, or a folder. on: `cpu`, `cuda:0`, `sim:h100x8`. max_len: tokens of
    context.
    kv_bytes: memory for keys and values. tp, pp: tensor-parallel ranks and pipeline stages, when simulated.
    None: derived.
    """

    model: str = "tiny:llama"
    on: str = "cpu"
    use: Sequence[Any] = ()
    max_len: int | None = None
    kv_bytes: int | None = None
    max_seqs: int = 128
    max_waiting: int = 4096
    prefix_cache: bool = True
    tp: int | None = None
    pp: int | None = None

    def techniques(self) -> dict[str, Any]:
        """The techniques by kind.

        Raises SpecError for an unknown one, one that does not serve, or two of one kind.
        """
        chosen: dict[str, Any] = {}
        texts = [u for u in self.use if isinstance(u, str)]
        for technique in [*parse_all(texts), *(u for u in self.use if not isinstance(u, str))]:
            kind = kind_of(technique)
            if kind not in SERVED_KINDS:
                raise SpecError(
                    f"{technique!r} is a {kind}",
                    expected=f"a {' or '.join(SERVED_KINDS)}",
                    fix="--use Sarathi",
                )
            if kind in chosen:
                raise SpecError(
                    f"{chosen[kind]!r} and {technique!r} are both of kind {kind}",
                    expected=f"one {kind}",
                    fix="leave one out",
                )
            chosen[kind] = technique
        return chosen


def make_engine(
    plan: Plan,
    kernel: Kernel,
    kv: KVCache,
    make_runner: Callable[[KVCache], Runner],
    max_len: int,
    vocab_size: int,
    **parts: Any,
) -> Engine:
    """The engine a plan describes, on any runner. parts: what else `Engine` takes."""
    chosen = plan.techniques()
    scheduler: Scheduler[Any] = chosen.get("scheduler") or Sarathi()
    proposer: Proposer | None = chosen.get("proposer")
    verifier: Verifier | None = chosen.get("verifier")
    limits = Limits(max_len=max_len, max_seqs=plan.max_seqs, max_waiting=plan.max_waiting)
    return Engine(
        kernel,
        make_runner(kv),
        kv,
        scheduler,
        limits=limits,
        proposer=proposer,
        verifier=verifier,
        vocab_size=vocab_size,
        **parts,
    )


def context(plan: Plan, spec: ModelSpec) -> Setting:
    """Tokens of context. Raises SpecError if more is asked for than the model has positions."""
    if plan.max_len is None:
        return Setting("max_len", str(spec.max_len), "the model's own context")
    if plan.max_len > spec.max_len:
        raise SpecError(
            f"max_len is {plan.max_len}",
            expected=f"at most {spec.max_len}, the model's context",
            fix="lower max_len",
        )
    return Setting("max_len", str(plan.max_len), "as asked")


def kv_blocks(
    plan: Plan,
    spec: ModelSpec,
    dtype: str,
    max_len: int,
    memory_bytes: int,
    block_size: int = BLOCK_SIZE,
) -> Setting:
    """KV blocks for a memory of memory_bytes free bytes, of which KV may take a quarter unless
    plan.kv_bytes says more.

    Raises CapacityError if one sequence of max_len tokens does not fit in what was asked for.
    """
    block_bytes = spec.kv_bytes_per_token(dtype) * block_size
    wanted = plan.max_seqs * -(-max_len // block_size)
    if plan.kv_bytes is not None:
        blocks = plan.kv_bytes // block_bytes
        if blocks < 1:
            raise CapacityError(
                f"{plan.kv_bytes} bytes of KV memory hold no block",
                expected=f"at least {block_bytes}",
                fix="raise kv_memory",
            )
        return Setting("kv_blocks", str(blocks), f"as asked, {block_bytes} bytes each")
    affordable = max(1, memory_bytes // 4 // block_bytes)
    if wanted <= affordable:
        return Setting("kv_blocks", str(wanted), f"{plan.max_seqs} sequences of {max_len} tokens fit")
    return Setting("kv_blocks", str(affordable), f"a quarter of the free memory, {block_bytes} bytes each")


def open_engine(
    plan: Plan, kernel: Kernel, progress: Callable[[str, int, int], None] | None = None
) -> tuple[Engine, Served, list[Setting]]:
    """Load the model and build the engine that serves it for real.

    progress(phase, done_bytes, total_bytes) is called while loading. Raises CheckpointError, SpecError.
    """
    if plan.on.startswith("sim:"):
        raise SpecError(
            f"{plan.on} is simulated",
            expected="cpu or cuda:0",
            fix=f"lightwork sim {plan.model} --on {plan.on}",
        )
    chosen = plan.techniques()
    if "router" in chosen:
        raise SpecError(
            f"{chosen['router']!r} divides work among engines, which are simulated only",
            expected="a simulated place",
            fix=f"lightwork sim {plan.model} --on sim:a100x8",
        )
    model, kv_dtype, block_size, settings = _load(plan, chosen.get("precision"), progress)
    longest = context(plan, model.spec)
    memory_bytes = free_bytes(plan.on)
    blocks = kv_blocks(plan, model.spec, kv_dtype, int(longest.value), memory_bytes, block_size)
    kv = KVCache(int(blocks.value), block_size, prefix_cache=plan.prefix_cache)
    runner = runner_for(plan.on, model)
    engine = make_engine(
        plan, kernel, kv, lambda kv: runner(kernel, model, kv), int(longest.value), model.spec.vocab_size
    )
    asked = "as asked" if "scheduler" in chosen else "the default"
    settings += [*_threads(plan, model), longest, blocks, Setting("scheduler", repr(engine.scheduler), asked)]
    return engine, model, settings


def _load(
    plan: Plan, precision: Precision | None, progress: Callable[[str, int, int], None] | None
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


def runner_for(place: str, model: Served) -> Callable[[Kernel, Any, KVCache], Runner]:
    """Triton's kernels on a GPU, if they are installed and know the model; otherwise the model itself."""
    if place.startswith("cuda") and find_spec("triton") is not None:
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
    small = model.nbytes < SMALL_BYTES and not compiles(plan.on)
    threads = 1 if small else os.cpu_count() or 1
    model.set_threads(threads)
    reason = "its steps are shorter than waking another thread" if small else "one per core"
    return [Setting("threads", str(threads), reason)]


def free_bytes(place: str) -> int:
    """Free memory of a real place, bytes."""
    if place.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(place)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
