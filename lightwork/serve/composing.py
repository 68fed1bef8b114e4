"""From a plan with a composition to what its engine needs beside that of one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightwork.errors import InvariantError
from lightwork.memory.kv import KVCache
from lightwork.memory.residents import Residents
from lightwork.models import resolve
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.progress import Progress
from lightwork.serve.compositions import Composition
from lightwork.serve.expert_runner import ExpertRunner, copy_for_real
from lightwork.serve.plan import Plan, Setting, contains
from lightwork.serve.runner import Runner
from lightwork.serve.schedulers import Scheduler
from lightwork.serve.schedulers.by_model import ByModel

if TYPE_CHECKING:
    from lightwork.models import Model
    from lightwork.models.compiled import CompiledModel
    from lightwork.models.experts import ExpertWeights

    Served = Model | CompiledModel


def taking_turns(scheduler: Scheduler[Any]) -> Scheduler[Any]:
    """The scheduler if models take turns in it, else turns with it inside."""
    return scheduler if contains(scheduler, ByModel) else ByModel(inner=scheduler)


def compose(
    plan: Plan,
    model: Served,
    make_runner: Callable[..., Runner],
    free_bytes: float,
    progress: Progress | None,
    name: str,
) -> tuple[Callable[[Kernel, Any, KVCache], Runner], Setting]:
    """A runner of all models, whose steps wait for their expert if these take turns; and what is resident.

    The model learns its variants. Raises CheckpointError, and CapacityError if one expert does not fit.
    """
    composition: Composition = plan.techniques()["composition"]
    turns = composition.turns()
    if turns is None:
        return make_runner, _share(resolve(plan.model), composition.folders(), cast("Model", model))
    experts = _open(plan, composition, model, progress)
    cap_bytes = int(free_bytes / 2 if turns.gb is None else turns.gb * 1e9)
    residents = Residents(experts.sizes, cap_bytes, turns.residency)
    made_bytes = experts.make_room(residents.num_slots)
    if made_bytes > cap_bytes:
        raise InvariantError(f"experts have {made_bytes} bytes", expected=f"at most {cap_bytes}")

    def make(kernel: Kernel, model: Served, kv: KVCache) -> Runner:
        return ExpertRunner(
            kernel,
            make_runner(kernel, model, kv),
            residents,
            copy_for_real(kernel, experts),
            experts.compute_from,
            prefetch=turns.prefetch,
            name=name,
        )

    why = "half of the free memory" if turns.gb is None else "as asked"
    return make, resident_setting(residents, why)


def _share(base: Path, folders: Mapping[str, Path], model: Model) -> Setting:
    """Let the model compute all of them in the blocks that they share, and what that saves."""
    from lightwork.models.chains import share
    from lightwork.models.zoo import gather

    zoo, chains = gather(base, folders)
    share(model, zoo, chains)
    named = [i for chain in chains.values() for i in chain]
    kept, apart = (sum(zoo.blocks[i].nbytes for i in ids) for ids in ({*named}, named))
    told = f"{kept / 1e6:.1f} MB as stored, {kept / apart:.0%} of what {len(chains)} models take apart"
    return Setting("blocks", str(len({*named})), told)


def _open(plan: Plan, composition: Composition, model: Served, progress: Progress | None) -> ExpertWeights:
    from lightwork.models.experts import PackedExperts, TorchExperts
    from lightwork.models.precisions.stored import Stored

    folders = composition.folders()
    model.variants = {name: name for name in folders}
    if hasattr(model, "layout"):
        precision = plan.techniques().get("precision") or Stored()
        return PackedExperts(cast("CompiledModel", model), folders, precision, progress)
    return TorchExperts(model, {"": resolve(plan.model), **folders}, progress)


def resident_setting(residents: Residents, why: str) -> Setting:
    told = f"{why}, {residents.cap_bytes / 1e9:.4g} GB; {residents.slot_bytes} bytes each"
    return Setting("residents", f"{residents.num_slots} of {len(residents.sizes)} models", told)
