"""The real backend of strategies: one process per rank on this machine, exchanging tensors by gloo.

Each rank is a process that drives its strategy; effects block, there is no event loop. A rank that fails
fails the whole run with its number and its own traceback; ranks that hang are named.
"""

from __future__ import annotations

import multiprocessing
import socket
import sys
import tempfile
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from lightwork.cluster.devices import Link
from lightwork.errors import DeadlockError, LightworkError, MissingExtraError, SpecError
from lightwork.runtime.clock import WallClock
from lightwork.runtime.drive import drive
from lightwork.runtime.effects import Collective, Compute, Effect, Move, Recv, Send, Signal, Wait
from lightwork.runtime.simulated import nbytes
from lightwork.runtime.trace import Span, Trace

Strategy = Callable[..., Coroutine[Any, Any, Any]]

_START_S = 120.0
_GRACE_S = 5.0  # a rank that waits too long says for what; only one that cannot is ended by the parent
_MAX_IN_FLIGHT = 256


def run_processes(
    strategy: Strategy,
    n: int,
    *args: Any,
    timeout_s: float = 60.0,
    trace: Trace | None = None,
    link: Link | None = None,
) -> list[Any]:
    """Run strategy(rank, n, *args) on n processes; returns their values in order of rank.

    strategy: a function of a module, so that the processes can import it. args: the same for all ranks.
    timeout_s: how long one effect, and what follows the first rank's end, may take. trace: gets all spans.
    link: what messages are slowed down to, each rank having such a link, for experiments; collectives are as
    they are.
    Raises LightworkError when a rank fails, DeadlockError when ranks hang.
    """
    try:
        import torch.distributed  # noqa: F401
    except ImportError:
        raise MissingExtraError("torch", "torch") from None
    # a server that has loaded torch forks the ranks: a fork of this process would copy its threads' locks
    method = "forkserver" if sys.platform != "win32" else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["torch.distributed", __name__])
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for rank in range(n):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_rank,
                args=(theirs, f"{folder}/store", rank, n, strategy, args, timeout_s, link),
                daemon=True,
            )
            process.start()
            theirs.close()
            started.append((process, ours))
        try:
            return _collect(started, timeout_s, trace)
        finally:
            for process, ours in started:
                ours.close()
                process.join(1.0)
                if process.is_alive():
                    process.kill()
                    process.join()


def _collect(
    ranks: Sequence[tuple[BaseProcess, Connection]], timeout_s: float, trace: Trace | None
) -> list[Any]:
    """Wait for the values of all ranks, for the first failure, or for the time to be up."""
    values: dict[int, Any] = {}
    spans: list[Span] = []
    lost: list[tuple[int, str, str]] = []
    rank_of = {ours: rank for rank, (_, ours) in enumerate(ranks)}
    clock = WallClock()
    until_s = _START_S + timeout_s
    while len(values) + len(lost) < len(ranks):
        pending = [ours for ours, r in rank_of.items() if r not in values and r not in [x[0] for x in lost]]
        ready = wait(pending, max(0.0, until_s - clock.now()))
        if not ready:
            break
        for ours in ready:
            rank = rank_of[ours]  # type: ignore[index]
            kind, said, more = _receive(ours, ranks[rank][0])  # type: ignore[arg-type]
            if kind == "value":
                values[rank] = said
                spans.extend(more)
                until_s = min(until_s, clock.now() + timeout_s + _GRACE_S)
            elif kind == "error":
                raise _failure(rank, len(ranks), said, more)
            else:
                # a rank that lost another is not the cause: give the cause a moment to be told
                lost.append((rank, said, more))
                until_s = min(until_s, clock.now() + 1.0)
    if lost:
        raise _failure(lost[0][0], len(ranks), lost[0][1], lost[0][2])
    if len(values) < len(ranks):
        hang = ", ".join(str(r) for r in range(len(ranks)) if r not in values)
        raise DeadlockError(
            f"ranks {hang} of {len(ranks)} do not end", expected=f"an end within {timeout_s:g} s of the first"
        )
    if trace is not None:
        for span in sorted(spans, key=lambda s: (s.end_s, s.rank)):
            trace.add(span)
    return [values[rank] for rank in range(len(ranks))]


def _receive(ours: Connection, process: BaseProcess) -> tuple[str, Any, Any]:
    try:
        told: tuple[str, Any, Any] = ours.recv()
        return told
    except EOFError:
        process.join(1.0)
        return "error", f"it ended with exit code {process.exitcode} and no word", ""


def _failure(rank: int, n: int, said: str, trace_text: str) -> LightworkError:
    error = LightworkError(f"rank {rank} of {n} failed: {said}", fix="see the rank's own traceback")
    if trace_text:
        error.add_note(f"rank {rank}: {trace_text}")
    return error


def _rank(
    pipe: Connection,
    store: str,
    rank: int,
    n: int,
    strategy: Strategy,
    args: tuple[Any, ...],
    timeout_s: float,
    link: Link | None,
) -> None:
    """The life of one process."""
    try:
        import torch

        torch.set_num_threads(1)
        world = GlooWorld(store, rank, n, timeout_s, link)
        value = drive(strategy(rank, n, *args), world.perform)
        world.flush()
        pipe.send(("value", value, world.trace.spans))
    except BaseException as error:
        kind = "lost" if isinstance(error, DeadlockError) else "error"
        pipe.send((kind, f"{type(error).__name__}: {error}", traceback.format_exc()))
    # leaving closes others' connections, and frees tensors that the parent still reads: wait for it
    with suppress(EOFError, OSError):
        pipe.recv()


def connect(store: str, rank: int, n: int, timeout_s: float, start_s: float = _START_S) -> Any:
    """Meet the other ranks at a file; returns the group of all, for torch.distributed.

    timeout_s: how long what they do together may take. start_s: how long they may be late, if that is longer.
    """
    import torch.distributed

    dist: Any = torch.distributed
    _use_loopback()
    start_s = max(start_s, timeout_s)
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, n), rank=rank, world_size=n, timeout=timedelta(seconds=start_s)
    )
    dist.barrier()
    # new processes start at different times, later effects are waited for no longer than asked
    return dist.new_group(list(range(n)), timeout=timedelta(seconds=timeout_s))


class GlooWorld:
    """Carries out the effects of one rank, blocking. trace: its spans, from when all ranks were connected.

    link: as `run_processes` has it. A message is followed by when the last of it leaves, then. keep: spans
    that the trace holds; None: all. start_s: how long others may be late.
    """

    def __init__(
        self,
        store: str,
        rank: int,
        n: int,
        timeout_s: float,
        link: Link | None = None,
        *,
        keep: int | None = None,
        start_s: float = _START_S,
    ) -> None:
        import torch
        import torch.distributed as dist

        self.rank = rank
        self.n = n
        self.trace = Trace("real: processes", keep=keep)
        self._dist: Any = dist
        self._torch = torch
        self._timeout = timedelta(seconds=timeout_s)
        self._in_flight: deque[tuple[Any, Any]] = deque()
        self._to_self: dict[int, deque[Any]] = {}
        self._groups: dict[tuple[int, ...], Any] = {}
        self._counters: dict[str, int] = {}
        self._groups[tuple(range(n))] = connect(store, rank, n, timeout_s, start_s)
        self._clock = WallClock()
        self._link = link
        self._sent_s = self._arrived_s = 0.0
        self._do: dict[type, Callable[[Any], Any]] = {
            Compute: self._compute,
            Move: lambda effect: effect.x,
            Send: self._send,
            Recv: self._recv,
            Collective: self._collective,
            Signal: self._signal,
            Wait: self._wait,
        }

    def perform(self, effect: Effect) -> Any:
        """Carry out an effect and record its span."""
        do = self._do.get(type(effect))
        if do is None:
            raise SpecError(
                f"{effect!r} is not for a process that blocks",
                expected=", ".join(kind.__name__ for kind in self._do),
                fix="run it on a Kernel",
            )
        start_s = self._clock.now()
        value = do(effect)
        kind = type(effect).__name__.lower()
        name, x, peer = _describe(effect, value)
        self.trace.add(Span(str(self.rank), kind, name, start_s, self._clock.now(), nbytes(x), peer))
        return value

    def flush(self) -> None:
        """Wait until all messages have been taken."""
        while self._in_flight:
            work, _ = self._in_flight.popleft()
            self._finish("a message to be taken", work)

    def _compute(self, effect: Compute) -> Any:
        return effect.fn(*effect.args) if effect.fn is not None else None

    def _send(self, effect: Send) -> None:
        x = effect.x.clone()
        if effect.to == self.rank:
            self._to_self.setdefault(effect.tag, deque()).append(x)
            return
        while self._in_flight and self._in_flight[0][0].is_completed():
            self._in_flight.popleft()
        if len(self._in_flight) >= _MAX_IN_FLIGHT:
            work, _ = self._in_flight.popleft()
            self._finish("a message to be taken", work)
        parts = [x]
        if self._link:
            self._sent_s = max(self._sent_s, self._clock.now()) + x.nbytes / self._link.bytes_per_s
            parts.append(self._torch.tensor(self._clock.origin_s + self._sent_s, dtype=self._torch.float64))
        for part in parts:
            self._in_flight.append((self._dist.isend(part, effect.to, tag=effect.tag), part))

    def _recv(self, effect: Recv) -> Any:
        if effect.source == self.rank:
            if not self._to_self.get(effect.tag):
                raise DeadlockError(
                    f"rank {self.rank} receives from itself before it sent", expected="Send first"
                )
            return self._to_self[effect.tag].popleft()
        if effect.like is None:
            raise SpecError(f"{effect!r} does not say what comes", expected="like: a tensor of its shape")
        x = self._received(self._torch.empty_like(effect.like), effect)
        if self._link:
            sent_s = self._received(self._torch.empty((), dtype=self._torch.float64), effect).item()
            soonest_s = sent_s + self._link.latency_s - self._clock.origin_s
            self._arrived_s = max(soonest_s, self._arrived_s + x.nbytes / self._link.bytes_per_s)
            self._clock.wait_until(self._arrived_s)
        return x

    def _received(self, x: Any, effect: Recv) -> Any:
        work = self._dist.irecv(x, effect.source, tag=effect.tag)
        self._finish(f"a message of rank {effect.source}, tag {effect.tag}", work)
        return x

    def _collective(self, effect: Collective) -> Any:
        if effect.group not in self._groups:
            self._groups[effect.group] = self._dist.new_group(
                list(effect.group), timeout=self._timeout, use_local_synchronization=True
            )
        what = f"{effect.kind} of ranks {', '.join(map(str, effect.group))}"
        return self._blocking(what, lambda: self._collect(effect, self._groups[effect.group]))

    def _collect(self, effect: Collective, group: Any) -> Any:
        dist, torch, size = self._dist, self._torch, len(effect.group)
        if effect.kind == "barrier":
            return dist.barrier(group)
        if effect.kind == "all_to_all":
            return self._exchange(effect.x, group)
        if effect.kind == "reduce_scatter":
            mine = torch.empty_like(effect.x[effect.group.index(self.rank)])
            dist.reduce_scatter(mine, [x.contiguous() for x in effect.x], group=group)
            return mine
        if effect.kind == "all_gather":
            return self._gather(effect.x, size, group)
        x = effect.x.clone()
        if effect.kind == "broadcast":
            dist.broadcast(x, effect.group[0], group=group)
        else:
            dist.all_reduce(x, group=group)
        return x

    def _exchange(self, parts: list[Any], group: Any) -> list[Any]:
        """All-to-all of parts that may differ in their number of rows, which is sent first."""
        torch = self._torch
        ours = torch.tensor([len(x) for x in parts])
        theirs = torch.empty_like(ours)
        self._dist.all_to_all_single(theirs, ours, group=group)
        whole = parts[0].new_empty((int(theirs.sum()), *parts[0].shape[1:]))
        self._dist.all_to_all_single(whole, torch.cat(parts), theirs.tolist(), ours.tolist(), group=group)
        return [*whole.split(theirs.tolist())]

    def _gather(self, x: Any, size: int, group: Any) -> list[Any]:
        """All-gather, likewise; shorter ones are sent as long as the longest."""
        torch = self._torch
        counts = [torch.empty(1, dtype=torch.int64) for _ in range(size)]
        self._dist.all_gather(counts, torch.tensor([len(x)]), group=group)
        most = max(map(int, counts))
        padded = torch.cat((x, x.new_zeros((most - len(x), *x.shape[1:]))))
        all_x = [torch.empty_like(padded) for _ in range(size)]
        self._dist.all_gather(all_x, padded, group=group)
        return [part[: int(count)] for part, count in zip(all_x, counts, strict=True)]

    def _signal(self, effect: Signal) -> None:
        self._counters[effect.name] = self._counters.get(effect.name, 0) + effect.count

    def _wait(self, effect: Wait) -> None:
        if self._counters.get(effect.name, 0) < effect.count:
            raise DeadlockError(
                f"rank {self.rank} waits for its own signal {effect.name!r}", expected="Signal first"
            )

    def _finish(self, what: str, work: Any) -> None:
        self._blocking(what, lambda: work.wait(self._timeout))

    def _blocking(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RuntimeError as error:
            raise DeadlockError(
                f"rank {self.rank} did not get {what}",
                expected=f"within {self._timeout.total_seconds():g} s",
                fix=f"look at the other rank ({str(error).splitlines()[0][:200]})",
            ) from error


def _describe(effect: Any, value: Any) -> tuple[str, Any, str]:
    """Name, data and peer of an effect's span, as the simulated world writes them."""
    match effect:
        case Send():
            return f"to {effect.to}", effect.x, str(effect.to)
        case Recv():
            return f"from {effect.source}", value, str(effect.source)
        case Collective():
            return effect.kind, effect.x, ""
        case Move():
            return f"{effect.src} to {effect.dst}", effect.x, ""
        case Signal() | Wait():
            return effect.name, None, ""
    return effect.name, None, ""


def _use_loopback() -> None:
    """Ranks of one machine need no other network, and are reachable from none."""
    import os

    for _, name in socket.if_nameindex():
        if name in ("lo", "lo0"):
            os.environ["GLOO_SOCKET_IFNAME"] = name
