"""Placement by greedy choice, for techniques of this kind."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from math import exp

from lightwork.errors import CapacityError
from lightwork.serve.hops import Change, Demand, Instance, Stored

GAIN = 0.01


class _Homes:
    """On which devices each application is served, and what that costs. left: bytes for blocks."""

    def __init__(self, demands: Sequence[Demand], blocks: Sequence[Stored], left: list[float]) -> None:
        self._demands, self._blocks, self.left = demands, blocks, left
        self._homes: list[list[int]] = [[] for _ in demands]
        self.on: list[set[int]] = [set() for _ in left]

    def best(self, app: int) -> tuple[float, int] | None:
        """Where one more home of an application leaves the least cost, and that; None if there is no room."""
        homes, best = self._homes[app], None
        for device in range(len(self.left)):
            if device in homes or self._missing_bytes(app, device) > self.left[device]:
                continue
            homes.append(device)
            found = self.cost(), device
            homes.pop()
            best = found if best is None or found < best else best
        return best

    def add(self, app: int, device: int) -> list[int]:
        """Returns the blocks that come to the device."""
        self.left[device] -= self._missing_bytes(app, device)
        missing = [block for block in self._demands[app].chain if block not in self.on[device]]
        self._homes[app].append(device)
        self.on[device] |= {*missing}
        return missing

    def cost(self) -> float:
        """What a token of all requests takes together: each waits for a pass of every block that is asked on
        its device."""
        rows: list[defaultdict[int, float]] = [defaultdict(float) for _ in self.left]
        requests = [0.0] * len(self.left)
        for demand, homes in zip(self._demands, self._homes, strict=True):
            for device in homes:
                requests[device] += demand.in_flight / len(homes)
                for block in demand.chain:
                    rows[device][block] += demand.in_flight / len(homes)
        return sum(n * self._turn_s(asked) for n, asked in zip(requests, rows, strict=True))

    def _turn_s(self, asked: Mapping[int, float]) -> float:
        """Of one pass of each block that has rows, as Poisson's law says how often that is."""
        return sum((1.0 - exp(-n)) * self._blocks[block].seconds(max(1.0, n)) for block, n in asked.items())

    def _missing_bytes(self, app: int, device: int) -> float:
        return sum(self._blocks[b].nbytes for b in self._demands[app].chain if b not in self.on[device])


def begin(
    demands: Sequence[Demand], blocks: Sequence[Stored], rooms: Sequence[float], kv_share: float
) -> list[Change]:
    """Every chain on one device, the busiest first, then on more as long as that makes tokens GAIN shorter:
    always where it costs all least.

    kv_share: of each device's memory that blocks leave free. Raises CapacityError.
    """
    homes = _Homes(demands, blocks, [room * (1.0 - kv_share) for room in rooms])
    order = sorted(range(len(demands)), key=lambda app: -demands[app].in_flight)
    changes = []
    for app in order:
        best = homes.best(app)
        if best is None:
            raise CapacityError(
                f"no device has room for blocks {demands[app].chain}",
                expected="memory for all",
                fix="more devices",
            )
        changes += [Change(block, best[1], True) for block in homes.add(app, best[1])]
    while True:
        found = [(best, app) for app in order if (best := homes.best(app)) is not None]
        if not found or min(found)[0][0] > (1.0 - GAIN) * homes.cost():
            return changes
        (_, device), app = min(found)
        changes += [Change(block, device, True) for block in homes.add(app, device)]


def scale_out(
    demands: Sequence[Demand],
    blocks: Sequence[Stored],
    rooms: Sequence[float],
    instances: Sequence[Instance],
    kv_share: float,
    scale: float,
) -> list[Change]:
    """One more instance of the block whose queues are more than `scale` times the mean of all, where most of
    what is beside it in chains is; the least used instance that is idle and not the only one gives way."""
    copies = Counter(instance.block for instance in instances)
    queued: defaultdict[int, float] = defaultdict(float)
    for one in instances:
        queued[one.block] += one.queued_s / copies[one.block]
    busiest = max(queued, key=lambda block: (queued[block], -block))
    if queued[busiest] <= scale * sum(queued.values()) / len(queued):
        return []
    beside: defaultdict[int, float] = defaultdict(float)
    for demand in demands:
        for block in demand.chain if busiest in demand.chain else ():
            beside[block] += demand.in_flight
    left = [room * (1.0 - kv_share) for room in rooms]
    near, has = [0.0] * len(rooms), set()
    for one in instances:
        left[one.device] -= blocks[one.block].nbytes
        near[one.device] += beside[one.block]
        has |= {one.device} if one.block == busiest else set()
    spare = [i for i in instances if i.idle and copies[i.block] > 1 and i.block != busiest]
    for gone in (None, *sorted(spare, key=lambda i: (i.used, i.block, i.device))):
        if gone is not None:
            left[gone.device] += blocks[gone.block].nbytes
        fits = [d for d, n in enumerate(left) if n >= blocks[busiest].nbytes and d not in has]
        if fits:
            added = Change(busiest, min(fits, key=lambda d: (-near[d], d)), True)
            return [added] if gone is None else [Change(gone.block, gone.device, False), added]
        if gone is not None:
            left[gone.device] -= blocks[gone.block].nbytes
    return []
