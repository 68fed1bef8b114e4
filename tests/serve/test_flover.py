"""Requests of every age in one step, in slots: who joins when, who waits, is refused, what memory is held."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import expected, make_engine, request
from numpy.typing import NDArray

from lightwork import models
from lightwork.cluster import CostModel, parse_place
from lightwork.decode.sampling import Pick, Sampling
from lightwork.errors import CapacityError
from lightwork.memory.kv import Copy
from lightwork.memory.layouts.slots import Slots
from lightwork.models.arena import ALIGNED
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.cost import ClusterCost
from lightwork.serve.engine import Engine
from lightwork.serve.fleet import Fleet
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import BLOCK_SIZE, Plan, kv_blocks, make_kv
from lightwork.serve.plan import make_engine as engine_of
from lightwork.serve.routers.prefill_decode import PrefillDecode
from lightwork.serve.schedulers import Chunk, Step
from lightwork.serve.schedulers.flover import Flover
from lightwork.serve.schedulers.static_batches import StaticBatches
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load
from lightwork.serve.simulated import open_simulated

Make = Callable[..., Path]


def steps_of(engine: Engine) -> list[dict[int, int]]:
    """Rows by sequence, of each step."""
    assert engine.kernel.trace is not None
    spans = [span for span in engine.kernel.trace.spans if span.kind == "step"]
    return [{chunk[0]: chunk[2] for chunk in span.args["chunks"]} for span in spans if span.args]


def test_a_computed_prompt_joins_in_the_next_step_and_delays_nobody() -> None:
    engine = make_engine(Flover(lane=16), blocks=400)
    load = [request(range(i, i + 9), max_tokens=20) for i in range(8)]
    seqs = run_load(engine, [0.008 * i for i in range(8)], load)
    steps = steps_of(engine)
    for seq in seqs:
        mine = [i for i, step in enumerate(steps) if seq.id in step]
        assert [steps[i][seq.id] for i in mine] == [9] + [1] * 19
        assert mine == list(range(mine[0], mine[0] + 20)), "one token in every step from then on"
    assert max(map(len, steps)) > 4


def test_the_lane_holds_whole_prompts_and_a_longer_one_alone() -> None:
    engine = make_engine(Flover(lane=16), blocks=400)
    load = [request(range(i, i + n), max_tokens=2) for i, n in enumerate((7, 8, 5, 40, 3))]
    run_load(engine, [0.0] * 5, load)
    prompts = [[rows for rows in step.values() if rows > 1] for step in steps_of(engine)]
    assert [rows for rows in prompts if rows] == [[7, 8], [5], [40], [3]]


def test_static_batches_begin_when_the_last_of_the_former_has_ended() -> None:
    engine = make_engine(StaticBatches(size=3), blocks=400)
    seqs = run_load(engine, [0.0] * 7, [request([i], max_tokens=3 + 4 * i) for i in range(7)])
    for former, later in ((seqs[:3], seqs[3:6]), (seqs[3:6], seqs[6:])):
        ends = [seq.finished_s or 0.0 for seq in former]
        assert len(set(ends)) == len(ends)
        assert all((seq.started_s or 0.0) == max(ends) for seq in later)


def test_who_finds_no_slot_waits_and_who_fits_in_none_is_refused() -> None:
    engine = make_engine(Flover(), blocks=13, layout=Slots(max_seqs=2))
    seqs = run_load(engine, [0.0] * 5, [request([i], max_tokens=6) for i in range(5)])
    assert max(map(len, steps_of(engine))) == 2
    assert [seq.tokens[1:] for seq in seqs] == [expected(request([i], max_tokens=6)) for i in range(5)]
    engine.submit(request([1] * 20, max_tokens=4))
    with pytest.raises(CapacityError, match="makes 25") as refused:
        engine.submit(request([1] * 20, max_tokens=5))
    assert "at most 24" in refused.value.expected
    assert len(engine.waiting) == 1


def test_settings_say_what_slots_are_and_why_nothing_is_shared() -> None:
    plan = Plan(model="shape:llama-2-7b", on="sim:a100", use=("Slots(max_seqs=8)",), max_len=1000)
    engine, settings = open_simulated(plan, Kernel())
    told = {setting.name: setting for setting in settings}
    assert engine.kv_tokens == int(told["kv_blocks"].value) // 8 * BLOCK_SIZE
    assert told["kv_slots"].value == "8"
    assert told["prefix_cache"].value == "off"
    assert "Slots(max_seqs=8)" in told["prefix_cache"].reason
    spec = models.read_shape(plan.model)
    assert kv_blocks(plan, spec, "bfloat16", 1000, 1 << 40).value == str(8 * 63)


def test_a_simulated_step_takes_longer_by_what_it_copies() -> None:
    spec = models.read_shape("shape:llama-2-7b")
    cost = ClusterCost(spec, CostModel(parse_place("sim:a100")), dtype="float16")
    seq = make_engine().submit(request())[0]
    chunks = [Chunk(seq, 0, 3)]
    (plain_s,), (copying_s,) = (
        cost.stages(Step(chunks=chunks, copies=copies)) for copies in ([], [Copy(0, 640, 512)])
    )
    moved_s = 2 * 512 * spec.kv_bytes_per_token("float16") / 1.56e12
    assert copying_s - plain_s == pytest.approx(moved_s, rel=0.02)


# -- for real


def compiled_engine(folder: Path, slots: int, kernel: Kernel | None = None) -> Engine:
    plan = Plan(model=str(folder), max_len=200, use=(Flover(), Slots(max_seqs=slots)))
    engine = open_engine(plan, kernel or Kernel(WallClock(), trace=Trace("real: cpu")))[0]
    assert isinstance(engine, Engine)
    return engine


def torch_engine(folder: Path, slots: int) -> Engine:
    plan = Plan(model=str(folder), max_len=200, use=(Flover(), Slots(max_seqs=slots)))
    kernel, model = Kernel(WallClock(), trace=Trace("real: torch")), models.load(str(folder))
    kv = make_kv(plan, slots * 16, 16, 0)
    return engine_of(plan, kernel, kv, LocalRunner(kernel, model, kv), 200, model.spec.vocab_size)


ENGINES = pytest.mark.parametrize("make", [compiled_engine, torch_engine])


def copied(engine: Engine) -> int:
    assert engine.kernel.trace is not None
    return sum("copied" in span.args for span in engine.kernel.trace.spans if span.args)


def random_load(seed: int) -> list[Request]:
    rng = random.Random(seed)
    return [
        Request(
            prompt=tuple(rng.randrange(256) for _ in range(rng.randint(3, 40))),
            max_tokens=rng.randint(1, 60),
            sampling=Sampling(temperature=0.0),
        )
        for _ in range(24)
    ]


@ENGINES
def test_whoever_ends_first_the_text_is_that_of_one_at_a_time(
    checkpoint: Make, make: Callable[[Path, int], Engine]
) -> None:
    folder, load = checkpoint("llama"), random_load(2)
    alone, fused = make(folder, 1), make(folder, 6)
    right = [run_load(alone, [0.0], [one])[0].tokens for one in load]
    waves = [run_load(fused, [0.0] * 8, load[at : at + 8]) for at in (0, 8, 16)]
    assert [seq.tokens for wave in waves for seq in wave] == right
    assert copied(fused) > 5
    assert copied(alone) == 0
    fused.kv.check()


def test_slots_whose_text_goes_on_elsewhere_are_gathered_later(checkpoint: Make) -> None:
    """What is lent, or on its way, stays where it is until it has been copied."""
    folder, load = checkpoint("llama"), random_load(3)
    right = [run_load(compiled_engine(folder, 1), [0.0], [one])[0].tokens for one in load[:12]]
    kernel = Kernel(WallClock(), trace=Trace("real: two engines"))
    fleet = Fleet([compiled_engine(folder, 12, kernel) for _ in range(2)], PrefillDecode())
    seqs = run_load(fleet, [0.002 * i for i in range(12)], load[:12])
    assert [seq.tokens for seq in seqs] == right
    for engine in fleet.engines:
        engine.kv.check()
        assert engine.kv.free == engine.kv.total


def resident_bytes(numbers: NDArray[Any]) -> int:
    """Of an array's pages, those that the process holds."""
    first = numbers.ctypes.data // ALIGNED
    num = -(-numbers.nbytes // ALIGNED)
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(8 * first)
        entries = np.frombuffer(file.read(8 * num), np.uint64)
    return int((entries >> np.uint64(63)).sum()) * ALIGNED


class Watch:
    """After each token of its sequence: how many ran, and the bytes that the pool's memory takes."""

    def __init__(self, engine: Engine, arrays: Sequence[NDArray[Any]]) -> None:
        self._engine = engine
        self._arrays = arrays
        self.seen: list[tuple[int, int]] = []

    def prompt(self, seq: Seq, picks: Sequence[Pick]) -> None: ...

    def tokens(self, seq: Seq, picks: Sequence[Pick]) -> None:
        self.seen.append((len(self._engine.running), sum(map(resident_bytes, self._arrays))))

    def finish(self, seq: Seq, reason: object, error: Exception | None) -> None: ...


@pytest.mark.skipif(sys.platform != "linux", reason="pages are counted in /proc")
@ENGINES
def test_memory_held_is_that_of_the_slots_in_use(
    checkpoint: Make, make: Callable[[Path, int], Engine]
) -> None:
    """The first request outlives the others and is the first of every step: it sees how many that had."""
    engine = make(checkpoint("llama"), 6)
    pool = engine.runner.pool
    arrays = pool._host if make is torch_engine else pool._arrays()
    slot_bytes = sum(numbers.nbytes for numbers in arrays) // 6
    watch = Watch(engine, arrays)
    load = [request([i + 1] * 30, max_tokens=n) for i, n in enumerate((170, 100, 165, 120, 155, 140))]
    run_load(engine, [0.0] * 6, load, [watch, *[None] * 5])  # type: ignore[list-item]
    assert {running for running, _ in watch.seen} == set(range(1, 7))
    assert all(held <= running * slot_bytes for running, held in watch.seen)
    assert max(held for _, held in watch.seen) > 4 * slot_bytes
    assert copied(engine) > 0
