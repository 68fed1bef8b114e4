"""From a plan with a composition to what its engine needs beside that of one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, cast

from lightwork.errors import InvariantError
from lightwork.memory.kv import KVCache
from lightwork.memory.residents import Residents
from lightwork.models.experts import Experts
from lightwork.runtime.kernel import Kernel
from lightwork.serve.compositions import Composition
from lightwork.serve.expert_runner import ExpertRunner, copy_for_real
from lightwork.serve.plan import Plan, Setting
from lightwork.serve.runner import Runner
from lightwork.serve.schedulers import Scheduler
from lightwork.serve.schedulers.by_model import ByModel

if TYPE_CHECKING:
    from lightwork.models import Model
    from lightwork.models.compiled import CompiledModel
    from lightwork.models.precisions import Precision

    Served = Model | CompiledModel


def taking_turns(scheduler: Scheduler[Any]) -> Scheduler[Any]:
    """The scheduler if models take turns in it, else turns with it inside."""
    return scheduler if _has_turns(scheduler) else ByModel(inner=scheduler)


def _has_turns(scheduler: object) -> bool:
    if isinstance(scheduler, ByModel) or not is_dataclass(scheduler):
        return isinstance(scheduler, ByModel)
    return any(_has_turns(getattr(scheduler, field.name)) for field in fields(scheduler))


def open_experts(
    plan: Plan,
    composition: Composition,
    model: Served,
    precision: Precision | None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Experts:
    """The weights of all, and their names as the model's variants. Raises CheckpointError."""
    from lightwork.models import resolve
    from lightwork.models.experts import PackedExperts, TorchExperts
    from lightwork.models.precisions.stored import Stored

    folders = composition.folders()
    model.variants = {name: name for name in folders}
    if hasattr(model, "layout"):
        return PackedExperts(cast("CompiledModel", model), folders, precision or Stored(), progress)
    return TorchExperts(model, {"": resolve(plan.model), **folders}, progress)


def make_residents(composition: Composition, experts: Experts, free_bytes: float) -> tuple[Residents, Setting]:
    """Their places in memory. Raises CapacityError if one expert does not fit."""
    cap_bytes = int(free_bytes / 2 if composition.gb is None else composition.gb * 1e9)
    residents = Residents(experts.sizes, cap_bytes, composition.residency)
    made_bytes = experts.make_room(residents.num_slots)
    if made_bytes > cap_bytes:
        raise InvariantError(f"experts have {made_bytes} bytes", expected=f"at most {cap_bytes}")
    why = "half of the free memory" if composition.gb is None else "as asked"
    return residents, resident_setting(residents, why)


def resident_setting(residents: Residents, why: str) -> Setting:
    told = f"{why}, {residents.cap_bytes / 1e9:.4g} GB; {residents.slot_bytes} bytes each"
    return Setting("residents", f"{residents.num_slots} of {len(residents.sizes)} models", told)


def around(
    make_runner: Callable[..., Runner], residents: Residents, experts: Experts, prefetch: bool, name: str
) -> Callable[[Kernel, Any, KVCache], Runner]:
    """A runner whose steps wait for their expert."""

    def make(kernel: Kernel, model: Any, kv: KVCache) -> Runner:
        return ExpertRunner(
            kernel,
            make_runner(kernel, model, kv),
            residents,
            copy_for_real(kernel, experts),
            experts.compute_from,
            prefetch=prefetch,
            name=name,
        )

    return make
