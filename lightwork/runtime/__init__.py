"""Effects, the kernel that runs them, and the one trace of what happened or would have. Free of torch.

effects.py    what a strategy asks for, with its counted `Work`
kernel.py     `Kernel`: steps coroutines on a wall clock or a virtual one; its parts: futures.py, local.py
clock.py      the only place that reads a clock
resources.py  who can do work: `Fifo`, `Fair`, `Store`; queue.py: places given in turns, by queue_policies/
trace.py      `Span`, `Trace`, `Observer`; perfetto.py writes and reads Chrome traces
simulated.py  `SimWorld`: ranks whose effects take as long as a price says
record.py     an effect graph known beforehand, in arrays; replay.py times it again, compiled
drive.py      the loop of a real backend whose effects block
actors.py     `Actors`: light actors that take one message at a time; places/: where they live; their parts:
              refs.py, table.py, mailbox.py and calls.py here, mesh.py, answers.py and packing.py between
              processes, host.py: such a process; states.py: actors as plain values
child.py      a process that computes for this one, its start and its end; ray_actor.py: in a Ray actor
line.py       the pipe between two of them; heartbeat.py: whether the other one gets on
garbage.py    Python's collector, told what stays

The one interface is `World.perform(task, effect)`. To add a world, write a class with that method and give it
to `Kernel.spawn(coro, world=...)`; a backend whose effects block needs one function, for `drive`. To add an
effect: a class in effects.py, and what it does in each world. Importing this package loads numpy, nothing
heavier.
"""

from lightwork.runtime.clock import VirtualClock, WallClock, cpu_s
from lightwork.runtime.drive import drive
from lightwork.runtime.effects import (
    DTYPE_BYTES,
    Acquire,
    Collective,
    Compute,
    Effect,
    Meta,
    Move,
    Price,
    Recv,
    Release,
    Send,
    Signal,
    Sleep,
    Spawn,
    Use,
    Wait,
    Work,
)
from lightwork.runtime.futures import CancelledError, Future, Task
from lightwork.runtime.kernel import Kernel, World
from lightwork.runtime.resources import Fair, Fifo, Store, max_min_rates
from lightwork.runtime.simulated import SimWorld
from lightwork.runtime.trace import Observer, Span, Trace

__all__ = [
    "DTYPE_BYTES",
    "Acquire",
    "CancelledError",
    "Collective",
    "Compute",
    "Effect",
    "Fair",
    "Fifo",
    "Future",
    "Kernel",
    "Meta",
    "Move",
    "Observer",
    "Price",
    "Recv",
    "Release",
    "Send",
    "Signal",
    "SimWorld",
    "Sleep",
    "Span",
    "Spawn",
    "Store",
    "Task",
    "Trace",
    "Use",
    "VirtualClock",
    "Wait",
    "WallClock",
    "Work",
    "World",
    "cpu_s",
    "drive",
    "max_min_rates",
]
