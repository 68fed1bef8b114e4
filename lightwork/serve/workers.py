"""A model as worker processes of this machine: pipeline stages of tensor-parallel ranks, and one controller.

The controller (the engine's process) decides alone: it sends each step's command to the ranks of the first
stage and collects logits from those of the last. Rank r of a stage hands commands and hidden states on to
rank r of the next, so there are tp chains of pp workers, each a `parallel.pipeline`; the ranks of a stage sum
what they have of a product by torch.distributed. Pipes are first in, first out: all ranks carry out all
commands in one order, and so their keys and values are of the same age.

A worker that is lost takes the others with it: what it held of keys and values is nowhere else.

Ranks whose weights come from disk are a master and helpers: the first is given tokens and gives scores, and
what others are sent, from here or by ranks, has neither.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import LightworkError, SpecError
from lightwork.kernels.rows import Rows
from lightwork.memory.host import Run
from lightwork.memory.kv import Copy
from lightwork.memory.residencies import Residency
from lightwork.models import import_models, read_shape, resolve
from lightwork.models.pooling import Pooling
from lightwork.models.spec import ModelSpec, read_json
from lightwork.models.tokenizer import Tokenizer
from lightwork.parallel.all_reduces import AllReduce
from lightwork.parallel.by_price import LOOPBACK, ByPrice
from lightwork.runtime.child import Child, listen, start_process
from lightwork.runtime.progress import Progress

if TYPE_CHECKING:
    from lightwork.cluster.devices import Link as Network
    from lightwork.models.slices import Slice

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Between stages. delay_s: how much longer it is busy with each message than a pipe is, for experiments
    with slow links.

    room: messages that may wait to be sent; 0: a stage computes nothing while it sends.
    """

    delay_s: float = 0.0
    room: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOrder:
    """What a worker is to be. store: a file at which the ranks of its stage meet.

    residency: of its weights, if they come from disk. all_reduce: how ranks sum, None: as torch does.
    between: what messages of ranks are slowed down to, for experiments.
    """

    path: Path
    slice: Slice
    store: str
    cores: Sequence[int]
    threads: int
    link: Link
    residency: Residency[Any] | None = None
    all_reduce: AllReduce | None = None
    between: Network | None = None


class Held(NamedTuple):
    """Weights of a rank, in bytes: all, and those in memory at once."""

    nbytes: int
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class Allocate:
    """Make room for keys and values, here and in host memory."""

    num_blocks: int
    block_size: int
    host_blocks: int


@dataclass(frozen=True, slots=True)
class Forward:
    """Copy slots, then compute rows."""

    rows: Rows
    copies: Sequence[Copy]


@dataclass(frozen=True, slots=True)
class Swap:
    """Copy blocks to host memory, or back."""

    runs: Sequence[Run]
    out: bool


@dataclass(frozen=True, slots=True)
class Embed:
    """Compute rows of texts, in keys and values of their own, which are made with the first of them.

    num_blocks: of those; 0 if they are there. counts: with the last of them, how many hidden states each text
    is pooled from. One after another, steps between them.
    """

    rows: Rows
    num_blocks: int
    counts: Sequence[int]
    pooling: Pooling


Command = Allocate | Forward | Swap | Embed
Array = NDArray[np.float32]
Message = tuple[Command | None, Array | None]
"""A command, and the hidden states that the stage before computed; from the last stage: logits, or the
vectors of texts."""
Answer = Callable[[list[Any], Exception | None], None]


def send_message(pipe: Connection, message: Message) -> None:
    """An array's bytes go as they are."""
    command, x = message
    pipe.send((command, None if x is None else x.shape))
    if x is not None and x.size:
        pipe.send_bytes(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)


def receive_message(pipe: Connection) -> Message:
    command, shape = pipe.recv()
    if shape is None:
        return command, None
    x = np.empty(shape, np.float32)
    if x.size:
        pipe.recv_bytes_into(x.reshape(-1).view(np.uint8).data)
    return command, x


def without_tokens(command: Command) -> Command:
    """What ranks are told that need not know what is computed."""
    if not isinstance(command, Forward | Embed):
        return command
    return replace(command, rows=replace(command.rows, tokens=command.rows.tokens[:0]))


class Workers:
    """The processes, as the model that they compute.

    depth: stages. into, out: pipes to the ranks of the first, and from those of the last. threads: of each.
    master: tokens go to the first rank alone. nbytes: of all weights. held: of each rank's. lost: why they
    compute no more. reads_once: see `CompiledModel`. Commands are sent and answers collected by threads.
    """

    reads_once = False

    def __init__(
        self,
        uri: str,
        children: Sequence[Child],
        into: Sequence[Connection],
        out: Sequence[Connection],
        threads: int,
        *,
        master: bool = False,
    ) -> None:
        folder = resolve(uri)
        self.spec: ModelSpec = read_shape(uri)
        self.tokenizer = Tokenizer(folder)
        self.generation: dict[str, Any] = read_json(folder, "generation_config.json", optional=True)
        self.held: Sequence[Held] = [child.wait() for child in children]
        self.nbytes = sum(held.nbytes for held in self.held)
        self.children = children
        self.variants: Mapping[str, str] = {}
        self.adapters: Collection[str] = ()
        self.depth = len(children) // len(into)
        self.threads = threads
        self.lost: LightworkError | None = None
        self._into = into
        self._out = out
        self._master = master
        self._closing = False
        self._lock = Lock()
        self._commands: SimpleQueue[Command | None] = SimpleQueue()
        self._asked: deque[Answer] = deque()
        self._threads = [
            Thread(target=work, name=f"lightwork-workers{work.__name__}", daemon=True)
            for work in (self._send, self._collect, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    def set_threads(self, num_threads: int) -> None:
        raise SpecError("the threads of workers are set when they start", expected="Plan(threads=...)")

    def warm_up(self) -> None:
        """They have, before they were ready."""

    def close(self) -> None:
        """End the processes."""
        self._closing = True
        for child in self.children:
            child.process.kill()
        for thread in self._threads:
            thread.join()
        for child in self.children:
            child.kill()
        for pipe in (*self._into, *self._out):
            pipe.close()

    def ask(self, command: Command, answer: Answer) -> None:
        """Send a command. answer(parts, error): called from a thread, with what the ranks of the last stage
        say. Raises LightworkError once a worker has been lost.
        """
        with self._lock:
            if self.lost is not None:
                raise self.lost
            self._asked.append(answer)
            self._commands.put(command)

    def _send(self) -> None:
        with suppress(OSError):  # the watching thread finds out why
            while (command := self._commands.get()) is not None:
                hidden = without_tokens(command) if self._master else command
                for rank, pipe in enumerate(self._into):
                    send_message(pipe, (hidden if rank else command, None))

    def _collect(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                parts = [receive_message(pipe)[1] for pipe in self._out]
                with self._lock:
                    answer = self._asked.popleft() if self._asked else None
                if answer is not None:
                    answer(parts, None)

    def _watch(self) -> None:
        """Whoever waits is told, and the workers that are left have nothing to do any more."""
        why = LightworkError("the workers were told to end")
        try:
            listen(self.children)
        except LightworkError as error:
            if not self._closing:
                log.error("%s", error.wrong)
                why = error
        with self._lock:
            self.lost = why
            asked, self._asked = self._asked, deque()
        for child in self.children:
            child.process.kill()
        for answer in asked:
            answer([], why)
        self._commands.put(None)


def start_workers(
    uri: str,
    *,
    tp: int,
    pp: int,
    cores: Sequence[int],
    threads: int | None = None,
    link: Link | None = None,
    residency: Residency[Any] | None = None,
    all_reduce: AllReduce | None = None,
    between: Network | None = None,
    progress: Progress | None = None,
) -> Workers:
    """Start a process for each rank, which loads its slice in float32, or reads it from disk for each step.

    threads: of each rank; None: its share of the cores. residency, all_reduce, between: see `WorkerOrder`;
    where weights come from disk, the price over the link decides how ranks sum if nobody has.
    Raises SpecError for a model that cannot be cut so; CheckpointError, LightworkError if one does not start.
    """
    import_models()
    from lightwork.models.slices import slices

    streams = residency is not None
    assert pp == 1 or not streams, "ranks that stream have all layers"
    if streams and all_reduce is None:
        all_reduce = ByPrice(link=between or LOOPBACK)
    grid = slices(read_shape(uri), pp, tp, master=streams)
    each = max(1, len(cores) // (tp * pp))
    with TemporaryDirectory() as folder:
        orders = [
            WorkerOrder(
                path=resolve(uri).absolute(),
                slice=mine,
                store=f"{folder}/stage-{number // tp}",
                cores=[cores[(number * each + k) % len(cores)] for k in range(each)],
                threads=threads or each,
                link=link or Link(),
                residency=residency,
                all_reduce=all_reduce,
                between=between,
            )
            for number, mine in enumerate(mine for row in grid for mine in row)
        ]
        started, into, out = _start(orders, tp, progress)
    return Workers(uri, started, into, out, threads or each, master=streams)


def _start(
    orders: Sequence[WorkerOrder], tp: int, progress: Progress | None
) -> tuple[list[Child], list[Connection], list[Connection]]:
    """The processes, stage by stage, when all are ready; the pipes to the first stage and from the last."""
    pp = len(orders) // tp
    pipes = [[Pipe(duplex=False) for _ in range(pp + 1)] for _ in range(tp)]  # before each stage, and behind
    started: list[Child] = []
    try:
        for number, order in enumerate(orders):
            s, r = divmod(number, tp)
            fds = (pipes[r][s][0].fileno(), pipes[r][s + 1][1].fileno())
            name = f"rank {number} (stage {s}, tensor rank {r})"
            started.append(start_process(name, "lightwork.serve.worker", order, fds))
        for chain in pipes:
            for received, sent in pairwise(chain):
                received[0].close()
                sent[1].close()
        listen(started, progress, until_ready=True)
    except BaseException:
        for child in started:
            child.kill()
        raise
    return started, [chain[0][1] for chain in pipes], [chain[-1][0] for chain in pipes]
