"""What a simulated cluster of blocks keeps of its requests, of blocks on devices, and of devices."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from lightwork.runtime.futures import Future
from lightwork.runtime.resources import Fifo
from lightwork.serve.loads import Arrival


@dataclass(slots=True, eq=False)
class Asked:
    """A request. place: in its chain. start, count: rows of the pass under way; again: rows of its context
    to be computed again in it. at: its instance at each place. loss: similarity lost so far. passed_s: ends
    of its passes."""

    arrival: Arrival
    chain: tuple[int, ...]
    place: int = 0
    computed: int = 0
    start: int = 0
    count: int = 0
    again: int = 0
    at: list[Site] = field(default_factory=list)
    loss: float = 0.0
    ready_s: float = 0.0
    first_s: float = 0.0
    finished_s: float = 0.0
    passed_s: list[float] = field(default_factory=list)

    @property
    def known(self) -> int:
        return self.arrival.prompt_len + self.arrival.output_len

    @property
    def latency_s(self) -> float:
        return self.finished_s - self.arrival.at_s


@dataclass(slots=True, eq=False)
class Site:
    """An instance: a block on a device. rows: in its queues. holding: requests whose keys and values it
    has."""

    block: int
    device: Device
    returning: deque[Asked] = field(default_factory=deque)
    new: deque[Asked] = field(default_factory=deque)
    rows: int = 0
    used: int = 0
    holding: int = 0

    def head_s(self) -> float:
        return min(queue[0].ready_s for queue in (self.returning, self.new) if queue)


@dataclass(slots=True, eq=False)
class Device:
    """rank: in the cluster's description. room: bytes left. guests: who has keys and values here, and in
    how many blocks. leaving: requests of its last pass whose next instance is still to be chosen."""

    number: int
    rank: int
    server: int
    room: float
    compute: Fifo
    link: Fifo
    sites: list[Site] = field(default_factory=list)
    guests: Counter[Asked] = field(default_factory=Counter)
    busy_until_s: float = 0.0
    leaving: int = 0
    bell: Future | None = None
