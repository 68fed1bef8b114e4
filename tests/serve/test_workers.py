"""A model cut over processes: the same texts and log-probabilities, in order, and nobody hangs when one
dies. Also where each rank reads its share from disk, and the first alone knows tokens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from lightwork import models
from lightwork.cluster.devices import Link
from lightwork.decode.sampling import Pick, Sampling
from lightwork.errors import LightworkError, SpecError
from lightwork.home import home
from lightwork.kernels.rows import Rows
from lightwork.memory.kv import KVCache
from lightwork.memory.residencies.sliding import Sliding
from lightwork.models.pooling import Pooling
from lightwork.parallel.all_reduces.star import Star
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.embedding import Embedding, Embeds, Text, Vector
from lightwork.serve.engine import Engine
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.notes import Notes
from lightwork.serve.opening import open_engine, own_cores
from lightwork.serve.plan import Plan, make_engine, make_kv, tier_blocks
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load
from lightwork.serve.workers import (
    Command,
    Embed,
    Forward,
    Workers,
    receive_message,
    send_message,
    start_workers,
)
from lightwork.serve.workers_runner import WorkersRunner

pytestmark = [
    pytest.mark.multiproc,
    pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux"),
]
GREEDY = Sampling(temperature=0.0)
LOAD = [
    Request(prompt=tuple(np.random.default_rng(i).integers(0, 256, 20 + 7 * i).tolist()), max_tokens=24)
    for i in range(10)
]
BLOCK_SIZE, NUM_BLOCKS = 16, 16
GRIDS = [(1, 2), (2, 1), (2, 2)]

Start = Callable[[int, int], Workers]


@pytest.fixture(scope="module")
def started(checkpoint: Callable[..., Path]) -> Iterator[Callable[[int, int], Workers]]:
    """Workers of a tiny model, as (stages, tensor ranks); started once."""
    found: dict[tuple[int, int], Workers] = {}

    def start(stages: int, ranks: int) -> Workers:
        if (stages, ranks) not in found:
            found[stages, ranks] = start_workers(
                str(checkpoint("llama")), tp=ranks, pp=stages, cores=own_cores()
            )
        return found[stages, ranks]

    yield start
    for workers in found.values():
        workers.close()
    left = [c.name for workers in found.values() for c in workers.children if c.process.poll() is None]
    assert left == []


@pytest.fixture(scope="module")
def streaming(checkpoint: Callable[..., Path]) -> Iterator[Workers]:
    """Two ranks of the same model that read their shares from disk, 1 ms apart."""
    workers = start_workers(
        str(checkpoint("llama")),
        tp=2,
        pp=1,
        cores=own_cores(),
        residency=Sliding(window=2),
        all_reduce=Star(),
        between=Link(name="slow", a="device", b="device", bytes_per_s=1e9, latency_s=1e-3),
    )
    yield workers
    workers.close()


def engine_on(workers: Workers, *use: object, num_blocks: int = NUM_BLOCKS, ahead: bool = False) -> Engine:
    plan = Plan(use=use)
    kernel = Kernel(WallClock(), trace=Trace("real: processes"))
    kv = make_kv(plan, num_blocks, BLOCK_SIZE, tier_blocks(plan, 3 * 2 * 2 * 8 * 4 * BLOCK_SIZE))
    runner = WorkersRunner(kernel, workers, kv, ahead=ahead)
    return make_engine(plan, kernel, kv, runner, max_len=512, vocab_size=320)


def outputs(seqs: Sequence[Seq]) -> list[list[int]]:
    return [seq.tokens[seq.prompt_len :] for seq in seqs]


@pytest.fixture(scope="module")
def expected(checkpoint: Callable[..., Path]) -> list[list[int]]:
    """What one process says."""
    engine, model, _ = open_engine(Plan(model=str(checkpoint("llama"))), Kernel(WallClock()))
    try:
        return outputs(run_load(engine, [0.0] * len(LOAD), LOAD))
    finally:
        model.close()


class Told:
    """Keeps what a caller is told."""

    def __init__(self) -> None:
        self.prompt_picks: list[Pick] = []
        self.picks: list[Pick] = []
        self.error: Exception | None = None

    def prompt(self, seq: Seq, picks: Sequence[Pick]) -> None:
        self.prompt_picks += picks

    def tokens(self, seq: Seq, picks: Sequence[Pick]) -> None:
        self.picks += picks

    def finish(self, seq: Seq, reason: str, error: Exception | None) -> None:
        self.error = error


@pytest.mark.parametrize(("stages", "ranks"), GRIDS)
def test_texts_are_those_of_one_process(
    started: Start, expected: list[list[int]], stages: int, ranks: int
) -> None:
    """Also in small chunks, with drafts, and with so few blocks that sequences are preempted."""
    engine = engine_on(started(stages, ranks), "Sarathi(chunk=16)", "Ngram(k=3)")
    assert engine.runner.depth == stages
    seqs = run_load(engine, [0.001 * i for i in range(len(LOAD))], LOAD)
    assert outputs(seqs) == expected
    assert sum(seq.num_preempted for seq in seqs) > 0
    engine.kv.check()
    assert outputs(run_load(engine, [0.0] * len(LOAD), LOAD)) == expected  # prompts are in the prefix cache


@pytest.mark.parametrize(("stages", "ranks"), GRIDS)
def test_steps_formed_ahead_wait_at_the_first_stage(
    started: Start, expected: list[list[int]], stages: int, ranks: int
) -> None:
    """Where there is one stage, for the tokens of the step before."""
    engine = engine_on(started(stages, ranks), "Sarathi(chunk=16)", ahead=True)
    assert (engine.runner.depth, engine.runner.feeds) == (stages + 1, stages == 1)
    seqs = run_load(engine, [0.001 * i for i in range(len(LOAD))], LOAD)
    assert outputs(seqs) == expected
    assert sum(seq.num_preempted for seq in seqs) > 0
    engine.kv.check()
    assert engine.kv.free == engine.kv.total


@pytest.mark.parametrize(("stages", "ranks"), GRIDS)
def test_log_probabilities_are_those_of_one_process(
    started: Start, checkpoint: Callable[..., Path], stages: int, ranks: int
) -> None:
    """Of every token of a prompt, and of what follows: float32 sums in another order."""
    load = [
        Request(
            prompt=r.prompt, max_tokens=4, sampling=Sampling(temperature=0.0, logprobs=5), prompt_logprobs=5
        )
        for r in LOAD[:4]
    ]
    alone, model, _ = open_engine(Plan(model=str(checkpoint("llama"))), Kernel(WallClock()))
    heard = []
    for engine in (alone, engine_on(started(stages, ranks), num_blocks=64)):
        told = [Told() for _ in load]
        run_load(engine, [0.0] * len(load), load, told)
        heard.append([[pick.logprob for pick in (*t.prompt_picks, *t.picks)] for t in told])
    model.close()
    for one, cut in zip(*heard, strict=True):
        np.testing.assert_allclose(np.array(cut, float), np.array(one, float), atol=1e-5, rtol=1e-5)


def test_ranks_that_read_their_shares_from_disk_say_what_one_process_says(
    streaming: Workers, expected: list[list[int]]
) -> None:
    """Also with drafts, preemption and a warm prefix cache; the first rank has embedding and head beside."""
    engine = engine_on(streaming, "Sarathi(chunk=16)", "Ngram(k=3)")
    seqs = run_load(engine, [0.001 * i for i in range(len(LOAD))], LOAD)
    assert outputs(seqs) == expected
    assert sum(seq.num_preempted for seq in seqs) > 0
    engine.kv.check()
    assert outputs(run_load(engine, [0.0] * len(LOAD), LOAD)) == expected
    master, helper = streaming.held
    assert master.resident_bytes < master.nbytes
    assert helper.resident_bytes < helper.nbytes < master.nbytes
    assert streaming.nbytes == master.nbytes + helper.nbytes


@pytest.mark.slow
def test_four_ranks_5_ms_apart_say_what_one_process_says(checkpoint: Callable[..., Path]) -> None:
    """They sum in whichever way the link makes quickest."""
    folder = str(checkpoint("llama", num_key_value_heads=4))
    alone, model, _ = open_engine(Plan(model=folder), Kernel(WallClock()))
    said = outputs(run_load(alone, [0.0] * 3, LOAD[:3]))
    model.close()
    link = Link(name="slow", a="device", b="device", bytes_per_s=1e8, latency_s=5e-3)
    workers = start_workers(folder, tp=4, pp=1, cores=own_cores(), residency=Sliding(window=3), between=link)
    assert outputs(run_load(engine_on(workers, num_blocks=64), [0.0] * 3, LOAD[:3])) == said
    workers.close()


class Tap:
    """Keeps what goes through a pipe."""

    def __init__(self, to: Connection) -> None:
        self.commands: list[Command | None] = []
        self._from, self.pipe = Pipe(duplex=False)
        self._to = to
        threading.Thread(target=self._pass_on, daemon=True).start()

    def _pass_on(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                message = receive_message(self._from)
                self.commands.append(message[0])
                send_message(self._to, message)

    def steps(self) -> list[Rows]:
        return [command.rows for command in self.commands if isinstance(command, Forward)]

    def has(self, tokens: Sequence[int]) -> bool:
        """Some tokens in a row, in whatever a step says of its rows."""
        said = [getattr(rows, f.name) for rows in self.steps() for f in fields(rows)]
        return any(np.array(tokens).tobytes() in np.asarray(array).tobytes() for array in said if len(array))


def test_no_rank_but_the_first_is_sent_tokens(streaming: Workers, expected: list[list[int]]) -> None:
    """Neither those of prompts nor any that was chosen."""
    engine = engine_on(streaming, num_blocks=64)
    pipes = streaming._into
    taps = [Tap(pipe) for pipe in pipes]
    streaming._into = [tap.pipe for tap in taps]
    assert outputs(run_load(engine, [0.0] * 3, LOAD[:3])) == expected[:3]
    streaming._into = pipes
    master, helper = taps
    for request in LOAD[:3]:
        assert master.has(request.prompt[:4])
        assert not any(helper.has(request.prompt[i : i + 4]) for i in range(len(request.prompt) - 3))
    assert len(helper.steps()) == len(master.steps()) > 20
    assert sum(rows.tokens.size for rows in helper.steps()) == 0
    assert sum(rows.tokens.size for rows in master.steps()) > sum(len(r.prompt) for r in LOAD[:3])
    for tap in taps:
        tap.pipe.close()


@pytest.mark.parametrize("stages", [1, 2])
def test_the_last_rank_pools_texts_as_one_process_does(
    started: Start, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, stages: int
) -> None:
    """Long texts in parts, of which each stage has one; also after one whose caller left in the middle."""
    monkeypatch.setattr("lightwork.serve.embedding.PART", 64)
    whole = Pooling(modes=("cls", "max", "mean"))
    texts = [
        Text([i * n % 250 for i in range(n)], "", pooling)
        for pooling in (Pooling(), whole)
        for n in (1, 63, 64, 300, 9)
    ]
    engine, model = engine_on(started(stages, 2)), models.load(str(checkpoint("llama")))
    kernel = engine.kernel

    async def embed(runner: Embeds) -> list[Vector]:
        asked = Embedding(kernel, runner, Notes(kernel, "engine"))
        leaves = kernel.spawn(asked.embed(texts[3]))
        vectors = [kernel.spawn(asked.embed(text)) for text in texts]
        while not asked._works:
            await kernel.sleep(0.0)
        leaves.cancel()
        return await kernel.gather(*vectors)

    cut = kernel.run(embed(engine.runner))
    alone = kernel.run(embed(LocalRunner(kernel, model, KVCache(4, BLOCK_SIZE))))
    for text, ours, theirs in zip(texts, cut, alone, strict=True):
        assert ours.shape == (32 * len(text.pooling.modes),)
        assert np.abs(ours - theirs).max() < 1e-5


def test_no_rank_but_the_first_is_sent_texts(streaming: Workers) -> None:
    pipes = streaming._into
    taps = [Tap(pipe) for pipe in pipes]
    engine = engine_on(streaming)
    streaming._into = [tap.pipe for tap in taps]
    vector = engine.kernel.run(engine.embed(Text(LOAD[1].prompt)))
    streaming._into = pipes
    assert vector.shape == (32,)
    sizes = [[c.rows.tokens.size for c in tap.commands if isinstance(c, Embed)] for tap in taps]
    assert sizes == [[len(LOAD[1].prompt)], [0]]
    for tap in taps:
        tap.pipe.close()


def test_keys_and_values_go_to_host_memory_and_back(started: Start, expected: list[list[int]]) -> None:
    engine = engine_on(started(2, 2), "FastSwitch(every=4, stay=0.3)", "HostMemory(gb=0.01)", "BlockGroups")
    assert outputs(run_load(engine, [0.0] * len(LOAD), LOAD)) == expected
    assert engine.kernel.trace is not None
    assert {"store", "fetch"} <= {span.kind for span in engine.kernel.trace.spans}


def test_sixteen_threads_are_answered_with_their_own_texts(started: Start, expected: list[list[int]]) -> None:
    """And steps in the order in which they were asked for."""
    engine = engine_on(started(2, 1), num_blocks=256)
    kernel, ended = engine.kernel, SimpleQueue[tuple[int, list[int]]]()

    class Ended(Told):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def finish(self, seq: Seq, reason: str, error: Exception | None) -> None:
            ended.put((self.number, [pick.token for pick in self.picks]))

    def ask(first: int) -> None:
        for i in range(first, first + 4):
            kernel.post(engine.submit, LOAD[i % len(LOAD)], Ended(i))

    running = threading.Thread(target=kernel.run, args=(engine.run(),))
    running.start()
    threads = [threading.Thread(target=ask, args=(4 * i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    answers = dict(ended.get(timeout=60) for _ in range(64))
    kernel.stop()
    running.join()
    assert answers == {i: expected[i % len(LOAD)] for i in range(64)}
    assert kernel.trace is not None
    steps = [int(span.name.split()[1]) for span in kernel.trace.spans if span.kind == "step"]
    assert steps == sorted(steps)


@pytest.mark.parametrize(
    "grid", [{"tp": 2}, {"pp": 2}, {"tp": 2, "depth": 2}, {"tp": 2, "use": ("Sliding(window=2)",)}], ids=str
)
def test_a_worker_that_is_killed_fails_what_is_pending(
    checkpoint: Callable[..., Path], grid: dict[str, Any]
) -> None:
    """In the middle of a plan's load, by its name; and the other ends, too."""
    engine, workers, settings = open_engine(Plan(model=str(checkpoint("llama")), **grid), Kernel(WallClock()))
    assert isinstance(engine, Engine)
    assert isinstance(workers, Workers)
    assert ("tp", str(grid.get("tp", 1))) in [setting[:2] for setting in settings]
    kernel, told = engine.kernel, [Told() for _ in LOAD]

    async def main() -> None:
        seqs = [engine.submit(request, sink)[0] for request, sink in zip(LOAD, told, strict=True)]
        while sum(seq.num_output for seq in seqs) < 20:
            await kernel.sleep(0.001)
        os.kill(workers.children[1].process.pid, signal.SIGKILL)
        await engine.drained()

    serving = kernel.spawn(engine.run())
    kernel.run(main())
    name = (
        "rank 1 (stage 0, tensor rank 1) was lost"
        if "tp" in grid
        else "rank 1 (stage 1, tensor rank 0) was lost"
    )
    assert all(name in str(t.error) and "exit code -9" in str(t.error) for t in told if len(t.picks) < 24)
    assert any(t.error is not None for t in told)
    assert not engine.alive
    late = Told()
    kernel.run(_one_more(engine, late))
    assert name in str(late.error)
    serving.cancel()
    assert [child.process.wait(10) for child in workers.children] == [-signal.SIGKILL] * 2
    workers.close()


def test_a_rank_that_cannot_read_its_weights_any_more_fails_what_is_pending(
    checkpoint: Callable[..., Path],
) -> None:
    before = {*(home() / "packed").glob("*.bin")}
    plan = Plan(model=str(checkpoint("llama", vocab_size=330)), tp=2, use=("Sliding",))
    engine, workers, settings = open_engine(plan, Kernel(WallClock()))
    assert isinstance(engine, Engine)
    made = {*(home() / "packed").glob("*.bin")} - before
    assert len(made) == 2
    assert any(s.name == "weights" and "each rank" in s.reason for s in settings)
    for file in made:
        os.truncate(file, 4096)
    told = [Told() for _ in LOAD]
    serving = engine.kernel.spawn(engine.run())
    engine.kernel.run(_all(engine, told))
    assert all("was lost" in str(t.error) and "weights cannot be read" in str(t.error) for t in told)
    assert not engine.alive
    serving.cancel()
    workers.close()


async def _all(engine: Engine, told: Sequence[Told]) -> None:
    for request, sink in zip(LOAD, told, strict=True):
        engine.submit(request, sink)
    await engine.drained()


async def _one_more(engine: Engine, sink: Told) -> None:
    engine.submit(LOAD[0], sink)
    await engine.drained()


HOST = """
import os, signal, sys
from lightwork.serve.workers import start_workers
workers = start_workers(sys.argv[1], tp=1, pp=2, cores=[0])
print(*[child.process.pid for child in workers.children], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_no_worker_outlives_its_controller(checkpoint: Callable[..., Path]) -> None:
    """Not even one that is killed: the pipe that they print to ends with the last of them."""
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, str(checkpoint("llama"))], stdout=subprocess.PIPE, text=True
    )
    said, _ = host.communicate(timeout=120)
    assert host.returncode == -signal.SIGKILL
    assert len(said.split()) == 2


def test_a_rank_that_cannot_load_fails_the_start(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    for file in checkpoint("llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    cut = (tmp_path / "model.safetensors").read_bytes()[:-4000]
    (tmp_path / "model.safetensors").write_bytes(cut)
    with pytest.raises(LightworkError, match=r"rank \d .* did not start: CheckpointError: .* damaged"):
        open_engine(Plan(model=str(tmp_path), tp=2), Kernel(WallClock()))


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"tp": 3}, "num_heads"),
        ({"pp": 9}, "9 pipeline stages of 3 layers"),
        ({"tp": 2, "on": "cuda:0"}, "processes of this machine"),
        ({"tp": 2, "use": ("Quant(bits=8)",)}, "without a precision"),
        ({"tp": -2, "pp": -1}, "processes of this machine"),
        ({"tp": 2, "use": ("Replicas(copies=2)",)}, "simulated only"),
    ],
    ids=str,
)
def test_what_workers_cannot_do_is_refused(
    checkpoint: Callable[..., Path], plan: dict[str, Any], said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        open_engine(Plan(model=str(checkpoint("llama")), **plan), Kernel(WallClock()))
