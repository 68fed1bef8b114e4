"""A model, a place and techniques, put together.

What nobody set is derived, and every derived value has its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightwork.decode.proposers import Drafter, Proposer, Target
from lightwork.decode.proposers.draft_model import DraftModel
from lightwork.decode.proposers.nat import Nat
from lightwork.decode.proposers.pearl import Pearl
from lightwork.decode.proposers.ppd import PPD
from lightwork.decode.verifiers import Verifier
from lightwork.decode.verifiers.relaxed_lossy import RelaxedLossy
from lightwork.errors import CapacityError, SpecError
from lightwork.memory.kv import KVCache
from lightwork.memory.layouts import Layout
from lightwork.memory.layouts.paged import Paged
from lightwork.memory.tiers import Tier
from lightwork.runtime.kernel import Kernel
from lightwork.serve.engine import Engine
from lightwork.serve.forming import Forming
from lightwork.serve.runner import Runner
from lightwork.serve.schedulers import Scheduler
from lightwork.serve.schedulers.co_serve import CoServe
from lightwork.serve.schedulers.microbatches import Microbatches
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.schedulers.time_sharing import TimeSharing
from lightwork.serve.sequence import Limits
from lightwork.shown import Table
from lightwork.techniques import kind_of, parse_all

if TYPE_CHECKING:
    from rich.console import Group

    from lightwork.models.adapters import Adapter
    from lightwork.models.spec import ModelSpec

BLOCK_SIZE = 16
PutProbes = Callable[[NDArray[np.float32]], None]
SERVED_KINDS = (
    "scheduler",
    "proposer",
    "verifier",
    "precision",
    "adapters",
    "router",
    "layout",
    "tier",
    "tuning",
    "composition",
    "residency",
)


class Setting(NamedTuple):
    """One derived value, and why it is what it is."""

    name: str
    value: str
    reason: str


def of_engines(told: Sequence[Sequence[Setting]]) -> list[Setting]:
    """The settings of several engines: those of all of them once, of some with their numbers before."""
    where: dict[Setting, list[int]] = {}
    for i, settings in enumerate(told):
        for setting in settings:
            where.setdefault(setting, []).append(i)
    return [
        setting if len(those) == len(told) else setting._replace(name=f"{_engines(those)} {setting.name}")
        for setting, those in where.items()
    ]


def _engines(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    if first == last:
        return f"engine {first}"
    in_a_row = last - first + 1 == len(numbers)
    return f"engines {first}-{last}" if in_a_row else f"engines {', '.join(map(str, numbers))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to serve, where, and with which techniques (objects, or the texts that name them).

    model: `tiny:llama`, `hf:./folder`, or a folder. on: `cpu`, `cuda:0`, `sim:h100x8`. max_len: tokens of
    context.
    kv_bytes: memory for keys and values. tp, pp: tensor-parallel ranks and pipeline stages, devices when
    simulated, processes on cpu. threads: of a CPU. None: derived. depth: 2 forms each step while the one
    before it computes, whatever the scheduler; 1 when that has ended.
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
    threads: int | None = None
    depth: int = 1

    def table(self) -> Table:
        """What was set; what is not is derived where it runs."""
        rows = [(field.name, getattr(self, field.name)) for field in fields(self) if field.name != "use"]
        used = [(kind, repr(technique)) for kind, technique in self.techniques().items()]
        told = (*used, *((name, value) for name, value in rows if value is not None))
        return Table(title=f"{self.model} on {self.on}", columns=("setting", "value"), rows=told)

    def __rich__(self) -> Group:
        return self.table().__rich__()

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def techniques(self) -> dict[str, Any]:
        """The techniques by kind.

        Raises SpecError for an unknown one, one that does not serve, two of one kind, or some that do not go
        together.
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
        _check_together(chosen, self.on)
        self._check_residency(chosen)
        self._check_depth(chosen)
        self._check_prompts(chosen)
        return chosen

    def _check_residency(self, chosen: dict[str, Any]) -> None:
        turns = chosen["composition"].turns() if "composition" in chosen else None
        if turns is not None and turns.residency.ring is not None:
            raise SpecError(
                f"{turns.residency!r} streams one model, whose blocks are used in a known order",
                expected="a residency that need not know it",
                fix="LRU()",
            )
        if "residency" not in chosen:
            return
        residency, beside = chosen["residency"], chosen.keys() & {"composition", "tuning"}
        if residency.ring is None:
            raise SpecError(
                f"{residency!r} does not say how much of a model it keeps",
                expected="a residency that streams a model's weights",
                fix="--use 'Sliding(window=2)'",
            )
        whole = self.on.startswith("ray:") and (self.tp or 1) == 1
        if beside or (self.pp or 1) > 1 or not (self.on == "cpu" or whole):
            raise SpecError(
                f"{residency!r} streams the weights of one model to the compiled CPU step, or to "
                "tensor-parallel ranks",
                expected="--on cpu, without pp, a composition or training",
                fix="leave them out; lightwork claims superpipeline simulates other places",
            )

    def _check_depth(self, chosen: dict[str, Any]) -> None:
        if self.depth not in (1, 2):
            raise SpecError(f"depth is {self.depth}", expected="1 or 2", fix="depth=2")
        waits = [chosen[kind] for kind in ("proposer", "tuning", "composition") if kind in chosen]
        if self.depth > 1 and waits:
            raise SpecError(
                f"{waits[0]!r} has to know what a step chose before the next is formed",
                expected="depth=1 with it",
                fix=f"depth=1, or leave {type(waits[0]).__name__} out",
            )

    def _check_prompts(self, chosen: dict[str, Any]) -> None:
        proposer, is_cut = chosen.get("proposer"), (self.tp or 1) * (self.pp or 1) > 1
        prompts_target = contains(proposer, PPD, outside=DraftModel)
        if prompts_target and (isinstance(proposer, Pearl) or "composition" in chosen or is_cut):
            raise SpecError(
                f"{proposer!r} guesses in the passes of one model, which one process computes",
                expected="no composition of models, no Pearl around it, neither tp nor pp",
                fix="--use PPD alone",
            )


def mixes(chosen: Mapping[str, Any]) -> bool:
    """Whether steps have rows of several models with weights of their own, which torch alone computes."""
    return "composition" in chosen and chosen["composition"].turns() is None


def contains(technique: object, cls: type, *, outside: type | tuple[()] = ()) -> bool:
    """Whether a technique is of a class, or one that it holds is. outside: a class that does not count."""
    if isinstance(technique, outside):
        return False
    if isinstance(technique, cls) or not is_dataclass(technique):
        return isinstance(technique, cls)
    return any(contains(getattr(technique, field.name), cls, outside=outside) for field in fields(technique))


def _check_together(chosen: Mapping[str, Any], on: str) -> None:
    """Raises SpecError for techniques that do not go together there."""
    if "composition" in chosen and chosen.keys() & {"adapters", "tuning"}:
        raise SpecError(
            "models of a composition have no adapters beside them",
            expected="Experts or Blocks alone, or one model",
            fix="leave one out",
        )
    scheduler = chosen.get("scheduler")
    if "tuning" in chosen and not isinstance(scheduler, CoServe | TimeSharing | None):
        raise SpecError(
            f"{scheduler!r} leaves no time for training",
            expected="CoServe around it",
            fix=f"--use 'CoServe(inner={scheduler!r})'",
        )
    if "tuning" in chosen and ("router" in chosen or on.startswith("ray:")):
        raise SpecError(
            "each of several engines would train the same adapter",
            expected="one engine",
            fix="leave the router out, and --on cpu",
        )
    if mixes(chosen) and on.startswith("sim:"):
        raise SpecError(
            f"{chosen['composition']!r} is served for real only",
            expected="a composition whose models take turns, such as Experts",
            fix="lightwork claims blockllm simulates blocks on a cluster",
        )
    _check_drafts(chosen, on)
    if mixes(chosen) and "precision" in chosen:
        raise SpecError(
            f"{chosen['precision']!r} is of the compiled CPU step, and torch computes shared blocks",
            expected="no precision: checkpoints are computed in float32 on a CPU",
            fix="leave it out",
        )
    if "precision" in chosen and on.startswith("sim:"):
        raise SpecError(
            f"{chosen['precision']!r} is of the compiled CPU step, and {on} is simulated",
            expected="no precision: a simulated place computes in the widest type that it is fast in",
            fix="leave it out",
        )


def _check_drafts(chosen: Mapping[str, Any], on: str) -> None:
    """Raises SpecError for a proposer or verifier that cannot work there."""
    proposer = chosen.get("proposer")
    if on.startswith("sim:") and (contains(proposer, DraftModel) or contains(proposer, PPD)):
        raise SpecError(
            f"{proposer!r} computes, and {on} is simulated",
            expected="a real place: which guesses hold is known only once they are made",
            fix="lightwork claims pearl simulates drafts that hold at a given rate",
        )
    if contains(proposer, Nat):
        raise SpecError(
            f"{proposer!r} drafts for encoder-decoders, and a plan serves decoders",
            expected="Copy, Ngram or DraftModel",
            fix="lightwork claims aggressive_decoding runs it on an encoder-decoder",
        )
    if isinstance(chosen.get("verifier"), RelaxedLossy) and on != "cpu":
        raise SpecError(
            f"{chosen['verifier']!r} asks for probabilities, which are at hand on a CPU only",
            expected="Match, which is exact, or --on cpu",
            fix="leave it out",
        )


def about(plan: Plan, **derived: Any) -> dict[str, Any]:
    """A plan in plain values, for its trace. derived: what was worked out for it, such as kv_blocks."""
    given = {field.name: getattr(plan, field.name) for field in fields(plan) if field.name != "use"}
    return {**given, "use": [repr(technique) for technique in plan.techniques().values()], **derived}


def make_engine(
    plan: Plan,
    kernel: Kernel,
    kv: KVCache,
    runner: Runner,
    max_len: int,
    vocab_size: int,
    models: Collection[str] | None = None,
    put_probes: PutProbes | None = None,
    forming: Callable[[Drafter], Forming | None] | None = None,
    **parts: Any,
) -> Engine:
    """The engine a plan describes, on any runner of these KV blocks.

    models: see `Limits`. put_probes: see `Target`. forming: prices the plan's drafter, or measures it. parts:
    what else `Engine` takes.
    """
    chosen = plan.techniques()
    plain = Microbatches(stages=runner.depth) if runner.depth > 1 and not runner.feeds else Sarathi()
    usual = CoServe() if "tuning" in chosen else plain
    scheduler: Scheduler[Any] = chosen.get("scheduler") or usual
    if "composition" in chosen and not mixes(chosen):
        from lightwork.serve.composing import taking_turns

        scheduler = taking_turns(scheduler)
    verifier: Verifier | None = chosen.get("verifier")
    limits = Limits(max_len=max_len, max_seqs=plan.max_seqs, max_waiting=plan.max_waiting, models=models)
    drafter, num_probes = _drafter(plan, chosen.get("proposer"), max_len, put_probes)
    return Engine(
        kernel,
        runner,
        kv,
        scheduler,
        limits=limits,
        proposer=drafter,
        num_probes=num_probes,
        forming=None if drafter is None or forming is None else forming(drafter),
        verifier=verifier,
        vocab_size=vocab_size,
        **parts,
    )


def _drafter(
    plan: Plan, proposer: Proposer | None, max_len: int, put_probes: PutProbes | None
) -> tuple[Drafter | None, int]:
    """Who guesses, and how many probes the target was given for that."""
    if proposer is None:
        return None, 0
    num_probes = 0

    def put(embeddings_Pd: NDArray[np.float32]) -> None:
        nonlocal num_probes
        assert put_probes is not None
        put_probes(embeddings_Pd)
        num_probes = len(embeddings_Pd)

    target = Target(
        model=plan.model,
        on=plan.on,
        max_seqs=plan.max_seqs,
        max_len=max_len,
        beside=ThreadPoolExecutor(1, "drafts"),
        put_probes=None if put_probes is None else put,
    )
    return proposer.begin(target), num_probes


def make_kv(plan: Plan, num_blocks: int, block_size: int, tier_blocks: int) -> KVCache:
    """The KV blocks of one engine, and host memory behind them if the plan has any."""
    chosen = plan.techniques()
    return KVCache(
        num_blocks,
        block_size,
        prefix_cache=plan.prefix_cache,
        layout=chosen.get("layout"),
        tier=chosen.get("tier"),
        tier_blocks=tier_blocks,
    )


def divided(plan: Plan, kv: KVCache) -> list[Setting]:
    """What a layout that divides the blocks among sequences makes of them."""
    if not kv.max_seqs:
        return []
    layout = repr(plan.techniques()["layout"])
    shared = [Setting("prefix_cache", "off", f"{layout}: a block is of one sequence")]
    slots = Setting("kv_slots", str(kv.max_seqs), f"{layout}, {kv.capacity()} tokens each")
    return [slots, *(shared if plan.prefix_cache else [])]


def adapters_setting(adapters: Sequence[Adapter]) -> Setting:
    told = ", ".join(f"{adapter.name} ({adapter.nbytes / 1e6:.2f} MB)" for adapter in adapters)
    return Setting("adapters", told, f"float32, rank up to {max(adapter.rank for adapter in adapters)}")


def training_setting(tuning: Any, lengths: Sequence[int]) -> Setting:
    """tuning: a `Tuning`."""
    return Setting("training", f"{len(lengths)} sequences", f"{sum(lengths)} tokens of {tuning.data}")


def overlapped(plan: Plan) -> list[Setting]:
    """What a plan says about steps in flight, if it says anything."""
    return [Setting("depth", "2", "as asked: each step is formed while one computes")] * (plan.depth > 1)


def tier_blocks(plan: Plan, block_bytes: int) -> int:
    """Blocks of host memory that a plan has. Raises CapacityError for a tier that holds none."""
    tier: Tier | None = plan.techniques().get("tier")
    return tier.num_blocks(block_bytes) if tier is not None else 0


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
    layout: Layout = plan.techniques().get("layout") or Paged()
    num_seqs = layout.max_seqs or plan.max_seqs
    wanted = num_seqs * -(-max_len // block_size)
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
        return Setting("kv_blocks", str(wanted), f"{num_seqs} sequences of {max_len} tokens fit")
    return Setting("kv_blocks", str(affordable), f"a quarter of the free memory, {block_bytes} bytes each")
