"""One rank of a model: `python -m lightwork.serve.worker CONTROL BEFORE AFTER`.

Descriptors: of the pipe to the controller, which says first what to be (`WorkerOrder`), and of those from the
stage before and to the stage after. It ends with the controller.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightwork.errors import DeadlockError
from lightwork.memory.streamed_stage import StreamedStage, open_streamed_stage
from lightwork.models.model import KVPool
from lightwork.models.stage import Stage, open_stage
from lightwork.parallel.pipeline import stage
from lightwork.parallel.processes import GlooWorld
from lightwork.runtime.child import LostError, outlive_signals
from lightwork.runtime.drive import drive
from lightwork.runtime.effects import Collective, Compute, Effect, Recv, Send
from lightwork.runtime.threads import ThreadWorld
from lightwork.serve.embedding import pooled
from lightwork.serve.workers import (
    Allocate,
    Embed,
    Forward,
    Held,
    Message,
    Swap,
    WorkerOrder,
    receive_message,
    send_message,
)

STUCK_S = 120.0
"""What the ranks of a stage do together takes no longer."""
LATE_S = 3600.0
"""So much longer than another's a rank's file may take to make. One that is lost meanwhile ends all."""


class Worker:
    """Carries out commands, one after the other."""

    def __init__(self, stage: Stage | StreamedStage) -> None:
        self.stage = stage
        self.pool: KVPool | None = None
        self.host: KVPool | None = None
        self._texts: KVPool | None = None
        self._states: list[NDArray[np.float32]] = []

    def compute(self, message: Message) -> Compute:
        return Compute((), self._carry_out, (message,), "step")

    def _carry_out(self, message: Message) -> Message:
        command, x = message
        if isinstance(command, Allocate):
            self.pool = self.stage.new_kv(command.num_blocks, command.block_size)
            self.host = (
                self.stage.new_kv(command.host_blocks, command.block_size) if command.host_blocks else None
            )
            y = None
        elif isinstance(command, Swap):
            assert self.pool is not None
            assert self.host is not None
            to, source = (self.host, self.pool) if command.out else (self.pool, self.host)
            to.pull(source, command.runs)
            y = None
        elif isinstance(command, Embed):
            y = self._embed(command, x)
        else:
            assert isinstance(command, Forward)
            y = self._forward(command, x)
        return (None if self.stage.ends else command), y

    def _forward(self, command: Forward, x: Any) -> Any:
        assert self.pool is not None
        for copy in command.copies:
            self.pool.copy(
                range(copy.src, copy.src + copy.num_slots), range(copy.dst, copy.dst + copy.num_slots)
            )
        return self.stage.forward(command.rows, self.pool, _tensor(x)).numpy()

    def _embed(self, command: Embed, x: Any) -> Any:
        """Hidden states; from the last stage, with the last rows, the vectors of all texts."""
        assert self.pool is not None
        if command.num_blocks:  # whose texts were there before may have left
            self._texts, self._states = self.stage.new_kv(command.num_blocks, self.pool.block_size), []
        assert self._texts is not None
        y: Any = self.stage.states(command.rows, self._texts, _tensor(x)).numpy()
        if self.stage.ends:
            self._states.append(y)
            y = np.stack(pooled(self._states, command.counts, command.pooling)) if command.counts else None
        if command.counts:
            self._texts, self._states = None, []
        return y


def _tensor(x: Any) -> Tensor | None:
    return None if x is None else torch.from_numpy(x)


@contextmanager
def _others(which: str) -> Iterator[None]:
    """What fails here fails because of others."""
    try:
        yield
    except (RuntimeError, OSError, EOFError, DeadlockError) as error:
        raise LostError(f"{which} do not answer: {str(error)[:200]}") from error


def _meet(order: WorkerOrder) -> Callable[[Effect], Any]:
    """What carries out the effects between the ranks of a stage, once they have found each other."""
    mine = order.slice
    with _others("ranks of its stage"):
        world = GlooWorld(order.store, mine.rank, mine.ranks, STUCK_S, order.between, keep=0, start_s=LATE_S)

    def perform(effect: Effect) -> Any:
        with _others("ranks of its stage"):
            return world.perform(effect)

    return perform


def _summing(order: WorkerOrder) -> Callable[[Tensor], Tensor]:
    """Sums over the ranks of a stage, which use their part up."""
    me, n, way = order.slice.rank, order.slice.ranks, order.all_reduce
    if n == 1:
        return lambda part: part
    perform, everybody = _meet(order), tuple(range(n))

    def reduce(part: Tensor) -> Tensor:
        if way is None:
            whole: Tensor = perform(Collective("all_reduce", everybody, part))
        else:
            whole = drive(way.sum(me, n, part), perform)
        return whole

    return reduce


def _open(order: WorkerOrder, control: Connection) -> Worker:
    torch.set_num_threads(order.threads)
    mine = order.slice
    tells = mine.first == mine.rank == 0
    progress = (lambda *told: control.send([("progress", *told)])) if tells else None
    opened: Stage | StreamedStage
    if order.residency is None:
        opened = open_stage(
            order.path,
            mine,
            dtype="float32",
            device="cpu",
            reduce=_summing(order),
            progress=progress,
        )
    else:
        assert order.all_reduce is not None, "ranks that stream exchange by effects"
        opened = open_streamed_stage(
            order.path,
            mine,
            order.residency,
            order.all_reduce,
            lambda: dict.fromkeys((Send, Recv), _meet(order)),
            progress=progress,
        )
    opened.warm_up()
    return Worker(opened)


def _live_with(control: Connection) -> None:
    """Nothing is said here any more: what comes is the end."""
    with suppress(EOFError, OSError):
        control.recv()
    os._exit(0)


def main() -> None:
    outlive_signals()
    control, before, after = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    pipe, source, to = (
        Connection(control),
        Connection(before, writable=False),
        Connection(after, readable=False),
    )
    order: WorkerOrder = pipe.recv()
    threading.Thread(target=_live_with, args=(pipe,), daemon=True).start()

    def send(effect: Send) -> None:
        with _others("ranks of the next stage"):
            send_message(to, effect.x)

    def recv(effect: Recv) -> Message:
        with _others("ranks of the stage before"):
            return receive_message(source)

    def failed(error: BaseException) -> None:
        """Say why, and wait for the end: that of this process would look like a cause."""
        lost = isinstance(error, LostError)
        if not lost:
            traceback.print_exception(error)
        with suppress(OSError):
            pipe.send([("lost" if lost else "failed", f"{type(error).__name__}: {error}")])
        threading.Event().wait()

    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, order.cores)
        worker = _open(order, pipe)
        pipe.send([("ready", Held(worker.stage.nbytes, worker.stage.resident_bytes))])
        delay_s = 0.0 if worker.stage.ends else order.link.delay_s
        position = stage(1, 3, worker.compute, room=order.link.room, delay_s=delay_s)
        ThreadWorld({Send: send, Recv: recv}, failed).run(position)
    except BaseException as error:
        failed(error)


if __name__ == "__main__":
    main()
