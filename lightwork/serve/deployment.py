"""The engines of a plan as processes of this machine, behind its router: `lightwork serve --use
PrefillDecode`.

Each has its cores and its share of free memory; weights are one mapped file. Keys and values lie in memory
that all of them map, so that an engine pulls from another without that one's help.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from lightwork.errors import SpecError
from lightwork.models import read_shape, resolve
from lightwork.models.spec import ModelSpec, read_json
from lightwork.models.tokenizer import Tokenizer
from lightwork.parallel.child import Child
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.progress import Progress
from lightwork.serve.fleet import Fleet
from lightwork.serve.opening import free_bytes, own_cores
from lightwork.serve.plan import Plan, Setting, about, of_engines
from lightwork.serve.remote import Order, RemoteEngine
from lightwork.serve.routers import Seat


@dataclass(slots=True, kw_only=True)
class Deployed:
    """The model that a deployment's processes compute, as far as their caller needs it."""

    spec: ModelSpec
    tokenizer: Tokenizer
    generation: dict[str, Any]
    nbytes: int
    variants: Mapping[str, str]
    engines: Sequence[RemoteEngine]

    def warm_up(self) -> None:
        """They have, before they were ready."""

    def close(self) -> None:
        """End the processes."""
        for engine in self.engines:
            engine.close()


def open_deployment(
    plan: Plan, kernel: Kernel, progress: Progress | None = None
) -> tuple[Fleet, Deployed, list[Setting]]:
    """Start the processes, as one engine. Raises SpecError; LightworkError if one fails."""
    router = plan.techniques()["router"]
    seats: list[Seat] = router.seats()
    _check(plan, seats)
    started: list[Child] = []
    files = [os.memfd_create(f"lightwork-kv-{i}") for i in range(len(seats))]
    try:
        for order in _orders(plan, kernel, seats, files):
            started.append(Child(f"engine {order.number}", "lightwork.serve.member", order, order.files))
            if len(started) == 1:  # it converts weights and compiles, if need be, for all of them
                started[0].wait(progress)
        told = [each.wait(progress) for each in started]
        tokenizer = Tokenizer(resolve(plan.model))
        generation = read_json(resolve(plan.model), "generation_config.json", optional=True)
    except BaseException:
        for each in started:
            each.kill()
        raise
    finally:
        for file in files:
            os.close(file)
    if kernel.trace is not None:
        kernel.trace.about = about(plan)
    ids = count()
    engines = [
        RemoteEngine(kernel, each.process, each.pipe, ready, number=i, ids=ids)
        for i, (each, ready) in enumerate(zip(started, told, strict=True))
    ]
    for engine in engines:
        engine.meet([ready.num_blocks for ready in told])
    model = Deployed(
        spec=read_shape(plan.model),
        tokenizer=tokenizer,
        generation=generation,
        nbytes=told[0].nbytes,
        variants=told[0].variants,
        engines=engines,
    )
    return Fleet(engines, router), model, of_engines([ready.settings for ready in told])


def _check(plan: Plan, seats: Sequence[Seat]) -> None:
    if "tuning" in plan.techniques():
        raise SpecError(
            "each of several engines would train the same adapter",
            expected="one engine",
            fix="leave the router out",
        )
    if plan.on != "cpu" or not hasattr(os, "memfd_create"):
        raise SpecError(
            f"engines behind a router are processes of this machine, not of {plan.on}",
            expected="--on cpu, on Linux; or a simulated place",
            fix=f"lightwork sim {plan.model} --on sim:a100x8",
        )
    if any((seat.tp or plan.tp or 1) * (seat.pp or plan.pp or 1) > 1 for seat in seats):
        raise SpecError(
            "an engine of several devices behind a router is simulated only",
            expected="tp and pp of 1",
            fix="leave them out",
        )


def _orders(plan: Plan, kernel: Kernel, seats: Sequence[Seat], files: Sequence[int]) -> Iterator[Order]:
    """One per seat. Each has its own cores while there are enough."""
    cores, each = own_cores(), max(1, len(own_cores()) // len(seats))
    memory_bytes = free_bytes(plan.on) // len(seats)
    use = [technique for kind, technique in plan.techniques().items() if kind != "router"]
    threads = max(1, plan.threads // len(seats)) if plan.threads is not None else None
    assert isinstance(kernel.clock, WallClock)
    for i, seat in enumerate(seats):
        yield Order(
            plan=replace(plan, use=tuple(use), threads=threads),
            number=i,
            files=files,
            cores=[cores[k % len(cores)] for k in range(i * each, (i + 1) * each)],
            memory_bytes=memory_bytes,
            origin_s=kernel.clock.origin_s,
            hands_over=seat.hands_over,
        )
