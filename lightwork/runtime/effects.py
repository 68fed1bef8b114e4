"""What a strategy asks for: effects, and the counted work they carry.

A strategy is a coroutine that awaits effects. It never reads a clock, opens a socket or touches a device;
whoever drives the coroutine carries each effect out (really, or by letting virtual time pass) and sends the
result back in.

    async def ring_all_gather(me, n, chunks):
        for s in range(n - 1):
            await Send((me + 1) % n, chunks[(me - s) % n])
            chunks[(me - s - 1) % n] = await Recv((me - 1) % n, like=chunks[(me - s - 1) % n])

Effects are created millions of times in a simulation, so they are plain slotted classes rather than frozen
ones.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, TypeVar

T = TypeVar("T")

DTYPE_BYTES = {
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "float8": 1,
    "int8": 1,
    "int32": 4,
    "int64": 8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The counted work of one operation, or of several that share one efficiency. Never seconds.

    kind: which of a device's rates applies ("matmul", "attention", "vector").
    ops: arithmetic operations, a multiply-add counting as two. dtype: the type they are done in.
    bytes: bytes moved through the memory named by level.
    rows: length of the parallel dimension (rows of a matrix product), for the device's efficiency curve; 0:
    saturated.
    launches: kernels or calls started.
    """

    kind: str = "matmul"
    dtype: str = "float32"
    ops: float = 0.0
    bytes: float = 0.0
    level: str = "memory"
    rows: int = 0
    launches: int = 1


@dataclass(frozen=True, slots=True)
class Meta:
    """The shape of a tensor without the tensor: what simulated strategies carry."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


class Effect:
    """One thing a strategy asks for. Awaiting it hands it to whoever drives the coroutine."""

    __slots__ = ()

    def __await__(self) -> Generator[Effect, Any, Any]:
        return (yield self)


@dataclass(slots=True, eq=False)
class Compute(Effect):
    """Do counted work. For real: call fn(*args) and return its value.

    Simulated, fn is not called and the first of args stands for its value: shapes, not values, matter there.
    """

    work: Sequence[Work]
    fn: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    name: str = "compute"


@dataclass(slots=True, eq=False)
class Move(Effect):
    """Copy x (anything with .nbytes) between two memories of this rank, or add it there (op="add")."""

    x: Any
    src: str
    dst: str
    op: Literal["add"] | None = None


@dataclass(slots=True, eq=False)
class Send(Effect):
    """Post x (anything with .nbytes) to a rank. Buffered: x may be reused as soon as this returns."""

    to: int
    x: Any
    tag: int = 0


@dataclass(slots=True, eq=False)
class Recv(Effect):
    """Wait for the oldest message of this tag from a rank; like: a tensor of its shape and dtype."""

    source: int
    like: Any = None
    tag: int = 0


@dataclass(slots=True, eq=False)
class Collective(Effect):
    """A collective operation over group (a tuple of ranks), entered by all its members. x is left as it is.

    all_reduce returns the sum; broadcast what group[0] gave; all_gather a list in the order of the group.
    reduce_scatter and all_to_all take a list, one element for each member. What is gathered, or sent to all,
    may have another number of rows (length of the first dimension) on each rank; that travels along.
    """

    kind: Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "barrier"]
    group: tuple[int, ...]
    x: Any = None


@dataclass(slots=True, eq=False)
class Signal(Effect):
    """Add count to a named counter of this world."""

    name: str
    count: int = 1


@dataclass(slots=True, eq=False)
class Wait(Effect):
    """Wait until a named counter of this world has reached count."""

    name: str
    count: int = 1


@dataclass(slots=True, eq=False)
class Sleep(Effect):
    """Let seconds pass."""

    seconds: float

    def __await__(self) -> Generator[Effect, Any, Any]:
        return iter((self,))  # type: ignore[return-value]  # half of a generator's memory: a million may sleep


@dataclass(slots=True, eq=False)
class Spawn(Effect):
    """Start a child on the same rank; returns its Future at once."""

    coro: Coroutine[Any, Any, Any]
    name: str = ""


@dataclass(slots=True, eq=False)
class Use(Effect):
    """Hold a Fifo resource for amount seconds of service, or pass amount bytes through a Fair one."""

    resource: Any
    amount: float


@dataclass(slots=True, eq=False)
class Acquire(Effect):
    """Take amount from a Store, waiting in order of arrival until it is there."""

    store: Any
    amount: float


@dataclass(slots=True, eq=False)
class Release(Effect):
    """Give amount back to a Store."""

    store: Any
    amount: float


@dataclass(frozen=True, slots=True)
class Price:
    """What an effect costs: demands served side by side, and a latency that follows the last of them.

    demands: (path, amount). A path is the name of one Fifo, with seconds; or the names of Fair resources
    that the bytes pass together.
    """

    demands: tuple[tuple[tuple[str, ...], float], ...] = ()
    latency_s: float = 0.0
