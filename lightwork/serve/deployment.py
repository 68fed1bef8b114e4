"""The engines of a plan as processes of this machine, or as Ray actors, behind its router: `lightwork serve
--use PrefillDecode`, `--on ray:`.

Each has its cores and its share of free memory; weights are one mapped file. Keys and values lie in memory
that all of one machine map, so that an engine pulls from another without that one's help; from machine to
machine they take the link.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, permutations
from typing import Any

from lightwork.errors import SpecError
from lightwork.models import read_shape, resolve
from lightwork.models.spec import ModelSpec, read_json
from lightwork.models.tokenizer import Tokenizer
from lightwork.runtime.child import Child, start_process
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.line import Link
from lightwork.runtime.progress import Progress
from lightwork.serve.fleet import Fleet
from lightwork.serve.messages import Order, Ready
from lightwork.serve.opening import free_bytes, own_cores
from lightwork.serve.plan import Plan, Setting, about, of_engines
from lightwork.serve.remote import RemoteEngine
from lightwork.serve.routers import Seat
from lightwork.serve.routers.replicas import Replicas

MEMBER = "lightwork.serve.member"


@dataclass(slots=True, kw_only=True)
class Deployed:
    """The model that a deployment's engines compute, as far as their caller needs it. leave: where they
    ran."""

    spec: ModelSpec
    tokenizer: Tokenizer
    generation: dict[str, Any]
    nbytes: int
    variants: Mapping[str, str]
    engines: Sequence[RemoteEngine]
    leave: Callable[[], object]

    def warm_up(self) -> None:
        """They have, before they were ready."""

    def close(self) -> None:
        """End the engines."""
        for engine in self.engines:
            engine.close()
        self.leave()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where engines run. start(name, module, order): one of them. num_cores: of each, which are `cores` where
    a process may say so. memory_bytes: free for each."""

    start: Callable[[str, str, Any], Child]
    num_cores: int
    memory_bytes: int
    cores: Sequence[int] = ()
    leave: Callable[[], object] = bool


def open_deployment(
    plan: Plan,
    kernel: Kernel,
    progress: Progress | None = None,
    *,
    link: Link | None = None,
    shares: bool = True,
) -> tuple[Fleet, Deployed, list[Setting]]:
    """Start the engines, as one engine. Raises SpecError; LightworkError if one fails.

    link: how slow their pipes are made. shares: whether they map each other's memory where they can.
    """
    router = plan.techniques().get("router") or Replicas(copies=1)
    seats: list[Seat] = router.seats()
    _check(plan, seats)
    place = _place(plan, len(seats))
    link = link or Link()
    starts = [*_starts(plan, place, seats, kernel, link=link, shares=shares)]
    started: list[Child] = []
    with ExitStack() as undo:
        undo.callback(place.leave)
        for start in starts:
            started.append(start())
            undo.callback(started[-1].kill)
            if len(started) == 1:  # it converts weights and compiles, if need be, for all of them
                started[0].wait(progress)
        told: list[Ready] = [each.wait(progress) for each in started]
        tokenizer = Tokenizer(resolve(plan.model))
        generation = read_json(resolve(plan.model), "generation_config.json", optional=True)
        undo.pop_all()
    if kernel.trace is not None:
        kernel.trace.about = about(plan)
    ids = count()
    engines = [
        RemoteEngine(kernel, start, each, ready, number=i, ids=ids, link=link)
        for i, (start, each, ready) in enumerate(zip(starts, started, told, strict=True))
    ]
    for engine, other in permutations(engines, 2):
        engine.meet(other)
    model = Deployed(
        spec=read_shape(plan.model),
        tokenizer=tokenizer,
        generation=generation,
        nbytes=told[0].nbytes,
        variants=told[0].variants,
        engines=engines,
        leave=place.leave,
    )
    return Fleet(engines, router), model, of_engines([ready.settings for ready in told])


def _check(plan: Plan, seats: Sequence[Seat]) -> None:
    real = plan.on == "cpu" or plan.on.startswith("ray:")
    if not real or not hasattr(os, "memfd_create"):
        raise SpecError(
            f"engines behind a router are processes of this machine, not of {plan.on}",
            expected="--on cpu or ray:, on Linux; or a simulated place",
            fix=f"lightwork sim {plan.model} --on sim:a100x8",
        )
    if any((seat.tp or plan.tp or 1) * (seat.pp or plan.pp or 1) > 1 for seat in seats):
        raise SpecError(
            "an engine of several devices behind a router is simulated only",
            expected="tp and pp of 1",
            fix="leave them out",
        )


def _place(plan: Plan, num_engines: int) -> Place:
    """This machine, divided among processes; or what there is of Ray."""
    if plan.on.startswith("ray:"):
        from lightwork.runtime.ray_actor import join, start_actor

        num_cores, memory_bytes, leave = join(plan.on.removeprefix("ray:"), num_engines)
        start = partial(start_actor, num_cores)
        return Place(start=start, num_cores=num_cores, memory_bytes=memory_bytes, leave=leave)
    cores = own_cores()
    return Place(
        start=start_process,
        num_cores=max(1, len(cores) // num_engines),
        memory_bytes=free_bytes("cpu") // num_engines,
        cores=cores,
    )


def _starts(
    plan: Plan, place: Place, seats: Sequence[Seat], kernel: Kernel, **link: Any
) -> Iterator[Callable[[], Child]]:
    """What starts the engine of each seat. Each has its own cores while there are enough."""
    use = [technique for kind, technique in plan.techniques().items() if kind != "router"]
    threads = None if place.cores else place.num_cores
    if plan.threads is not None:
        threads = max(1, plan.threads // len(seats))
    cores, each = place.cores, place.num_cores
    clock = kernel.clock
    assert isinstance(clock, WallClock)
    for i, seat in enumerate(seats):
        order = Order(
            plan=replace(plan, on="cpu", use=tuple(use), threads=threads),
            number=i,
            cores=[cores[k % len(cores)] for k in range(i * each, (i + 1) * each) if cores],
            memory_bytes=place.memory_bytes,
            moment=clock.moment(),
            hands_over=seat.hands_over,
            **link,
        )
        yield partial(_start, place, clock, order)


def _start(place: Place, clock: WallClock, order: Order) -> Child:
    return place.start(f"engine {order.number}", MEMBER, replace(order, moment=clock.moment()))
