"""The kind that serves models as chains of blocks over devices: where blocks live, and where a request goes
next.

A block is a range of layers that several applications may share; an instance of it lives on a device and
has a queue of its own. A request hops from instance to instance, and its keys and values of a block stay
where they were computed until a hop takes them elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, Protocol

Carry = Literal["owner", "transfer", "recompute"]


class Candidate(NamedTuple):
    """An instance that could compute a request's next block; all times from now.

    wait_s: until it would be taken up, were it there; for a request that begins, what every token of it
    will take there, passes of other blocks included. pass_s: of its own pass. adds_s: by how much a request
    that begins lengthens the tokens of those who are there, all together. reach_s: for its hidden states to
    get there. transfer_s, recompute_s: for keys and values of its context to be copied there, or for the
    context's hidden states to get there and be computed again; 0 where they are, or where there are none yet.
    loss: similarity lost if the block is a stand-in for the request's own.
    """

    wait_s: float
    pass_s: float
    adds_s: float
    reach_s: float
    transfer_s: float
    recompute_s: float
    owner: bool
    loss: float


class Choice(NamedTuple):
    """Which candidate, by number, and how keys and values get there."""

    candidate: int
    carry: Carry


class Demand(NamedTuple):
    """An application. in_flight: its requests at a time, expected or as they are."""

    chain: tuple[int, ...]
    in_flight: float


class Stored(NamedTuple):
    """A block. seconds: of a pass of so many rows."""

    nbytes: float
    seconds: Callable[[float], float]


class Instance(NamedTuple):
    """A block on a device. queued_s: of passes for those who wait there. used: requests since placement was
    last asked for. idle: holds no keys and values."""

    block: int
    device: int
    queued_s: float
    used: int
    idle: bool


class Change(NamedTuple):
    """Put a block on a device, or take it away."""

    block: int
    device: int
    add: bool


class Hop(Protocol):
    """Synchronous, deterministic, without side effects."""

    def choose(self, candidates: Iterable[Candidate], budget: float) -> Choice:
        """Where a request's next block is computed; of one that comes back, its owner is the first.

        budget: of similarity that it may still lose.
        """
        ...

    def batch(self, seconds: Callable[[int], float]) -> int:
        """Most rows of one pass through a block whose passes of so many rows take so many seconds."""
        ...

    def place(
        self,
        demands: Sequence[Demand],
        blocks: Sequence[Stored],
        rooms: Sequence[float],
        instances: Sequence[Instance],
    ) -> list[Change]:
        """Changes to where blocks live, in order; without instances, where they shall begin.

        rooms: bytes of each device's memory, for blocks and for keys and values.
        """
        ...
