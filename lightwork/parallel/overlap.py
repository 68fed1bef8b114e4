"""Overlap: nano-operations of one device side by side, each when those it waits for have ended.

Paper:  "NanoFlow: Towards Optimal Large Language Model Serving Throughput", 2024
Idea:   while products of one range of rows compute, attention of another reads memory and a collective of a
        third is on the network, in lanes that wait for one another. Side by side kernels are slower: one
        bound by memory or network holds a share R of the device and keeps a speed P(R), measured beside
        products, which keep the rest
Shapes: OpPlan, layers, what doing a nano-operation is -> done, or seconds
Cost:   O(layers x nano-operations x waits); simulated, a few layers and the pace at which more follow
Claims: nanoflow
Differs: products take all that nobody holds, from moment to moment, instead of a share of their own
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import cache

from lightwork.cluster.devices import Curve, interpolate
from lightwork.parallel.op_plan import NanoOp, OpPlan
from lightwork.runtime.effects import Signal, Sleep, Spawn, Use, Wait
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.resources import Fair

Do = Callable[[int, NanoOp], Awaitable[object]]
"""(layer, nano-operation) -> what doing it is."""
Seconds = Callable[[str, int], float]
"""(operator, rows) -> seconds of one layer's operator on so many rows, with the device to itself."""
WARM_LAYERS = 4
"""From then on layers follow one another at one pace."""


async def carry_out(plan: OpPlan, num_layers: int, do: Do) -> None:
    """Every nano-operation of every layer, each when those it waits for have ended."""
    lanes = [await Spawn(_lane(plan, name, num_layers, do), name) for name in plan.lanes]
    for lane in lanes:
        await lane


async def _lane(plan: OpPlan, name: str, num_layers: int, do: Do) -> None:
    mine = [(i, op) for i, op in enumerate(plan.ops) if op.lane == name]
    for layer in range(num_layers):
        for i, op in mine:
            for j in op.after:
                await Wait(f"{layer}.{j}")
            if layer:
                for j in op.behind:
                    await Wait(f"{layer - 1}.{j}")
            await do(layer, op)
            await Signal(f"{layer}.{i}")


class SharedDevice:
    """A simulated device whose kernels run side by side.

    Those bound by memory or network hold a share of it, those bound by compute take what is left; how fast
    they are there, over their speed alone, their resource's curve says: as much as their share if there is
    none. ended_s: of each layer, when all that has been done of it was.
    """

    def __init__(self, kernel: Kernel, plan: OpPlan, alone: Seconds, sharing: Mapping[str, Curve]) -> None:
        self._kernel = kernel
        self._resource = {o.name: o.resource for o in plan.operators}
        self._alone = alone
        self._sharing = sharing
        self._compute = Fair("compute", speed_on(1.0, "compute", sharing))
        self._held = 0.0
        self.ended_s: dict[int, float] = {}

    async def do(self, layer: int, op: NanoOp) -> None:
        """Let as much time pass as the nano-operation takes beside the others."""
        resource = self._resource[op.operator]
        seconds = self._alone(op.operator, op.stop - op.start)
        if resource == "compute":
            await Use(self._compute, seconds)
        else:
            held = op.share if op.share < 1 else 0.0  # beside one that holds all, a plan lets nobody run
            self._hold(held)
            await Sleep(seconds / speed_on(op.share, resource, self._sharing))
            self._hold(-held)
        self.ended_s[layer] = self._kernel.now()

    def _hold(self, share: float) -> None:
        self._held += share
        self._compute.retune(self._kernel, speed_on(1 - self._held, "compute", self._sharing))


def speed_on(share: float, resource: str, sharing: Mapping[str, Curve]) -> float:
    """Of a kernel on a share of a device, over its speed alone."""
    curve = sharing.get(resource)
    return share if curve is None else interpolate(curve, share)


def seconds_of(plan: OpPlan, num_layers: int, alone: Seconds, sharing: Mapping[str, Curve]) -> float:
    """Of all layers, carried out on a simulated device."""
    if plan.is_serial:
        return num_layers * sum(alone(op.operator, plan.rows) for op in plan.ops)
    kernel = Kernel()
    device = SharedDevice(kernel, plan, cache(alone), sharing)
    carried_out = min(num_layers, WARM_LAYERS)
    kernel.run(carry_out(plan, carried_out, device.do))
    more = num_layers - carried_out
    if not more:
        return kernel.now()
    # the last of them has nobody behind it to run beside
    pace_s = device.ended_s[carried_out - 2] - device.ended_s[carried_out - 3]
    return kernel.now() + more * pace_s
