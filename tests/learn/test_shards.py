"""Sums over shards: the same wherever the shards are, whatever becomes of their processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.errors import ActorLostError, LightworkError
from lightwork.learn.data import bars
from lightwork.learn.shards import (
    Here,
    Map,
    Placed,
    Sums,
    Worker,
    alone,
    children,
    histogram,
    kth_largest,
    order_bits,
    parts,
)
from lightwork.learn.sparse import BSC
from lightwork.learn.sparse.shard import Shard
from lightwork.runtime import Kernel, WallClock
from lightwork.runtime.actors import Actors
from lightwork.runtime.places.process import Process
from lightwork.runtime.places.ray import Ray
from lightwork.runtime.places.simulated import Simulated
from lightwork.runtime.progress import Progress

PLACES = {
    "local": list,
    "simulated": lambda: [Simulated(latency_s=1e-3, bytes_per_s=1e6), Simulated(message_s=1e-4)],
    "process": lambda: [Process(), Process()],
    "ray": lambda: [Ray(), Ray()],
}
WIDE = 80_000
"""Bytes."""


class Rows:
    """A shard of numbers that remembers what it was told."""

    continues = ("total", "grow", "grow_at_once", "grow_or_die_once")

    def __init__(self, values: Any) -> None:
        self._values = np.asarray(values, float)
        self._scale = 0.0

    def __len__(self) -> int:
        return len(self._values)

    def scale(self, by: float) -> Sums:
        self._scale = by
        return Sums({})

    def total(self) -> Sums:
        return Sums({"sum": np.array(self._scale * self._values.sum()), "num": np.array(len(self))})

    def histogram(self, prefix: int, shift: int) -> Sums:
        return histogram(order_bits(self._values), prefix, shift)

    def grow(self) -> Sums:
        """What must not be done twice."""
        self._scale += 1.0
        return self.total()

    def grow_at_once(self, mark: str) -> Sums:
        return self.grow()

    def grow_or_die_once(self, mark: str) -> Sums:
        """The process of the last shard is killed, the first time."""
        if len(self) == 7 and not os.path.exists(mark):
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.grow()

    def num(self) -> Sums:
        return Sums({"num": np.array(len(self))})

    def wait(self, pipe: str) -> Sums:
        Path(pipe).read_text()
        return self.num()

    def wide(self) -> Sums:
        return Sums({"wide": np.ones(WIDE // 8)})

    def fail(self) -> Sums:
        raise ValueError("no such thing")

    def die(self) -> Sums:
        os.kill(os.getpid(), signal.SIGKILL)
        return Sums({})


@given(
    values=st.lists(st.floats(allow_nan=False), min_size=1, max_size=60),
    num=st.integers(1, 5),
    data=st.data(),
)
def test_the_kth_largest_is_found_by_counting(values: list[float], num: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    array = np.array(values)
    map = Here([Rows(array[rows]) for rows in parts(num, len(array))])
    found = alone(kth_largest(map, k))
    bits = np.sort(order_bits(array))
    assert (bits >= found).sum() == (bits >= bits[-k]).sum()
    in_order = array[np.argsort(order_bits(array), kind="stable")]
    assert (in_order[1:] >= in_order[:-1]).all()


@given(num=st.integers(1, 9), rows=st.integers(0, 30))
def test_parts_differ_by_one_row_at_most(num: int, rows: int) -> None:
    sizes = [cut.stop - cut.start for cut in parts(num, rows)]
    assert sum(sizes) == rows
    assert max(sizes) - min(sizes) <= 1


@given(size=st.integers(1, 40), fan_out=st.integers(1, 5))
def test_every_part_but_the_first_is_added_to_one_other(size: int, fan_out: int) -> None:
    below = [child for rank in range(size) for child in children(rank, size, fan_out)]
    assert sorted(below) == [*range(1, size)]


def test_nothing_is_neutral() -> None:
    some = Sums({"x": np.ones(2)})
    assert Sums({}).merge(some) is some
    assert some.merge(Sums({})) is some
    assert some.nbytes == 16


@pytest.fixture(
    scope="module",
    params=[
        "local",
        "simulated",
        pytest.param("process", marks=pytest.mark.multiproc),
        pytest.param("ray", marks=pytest.mark.slow),
    ],
)
def actors(request: pytest.FixtureRequest) -> Iterator[Actors]:
    """Two places of each kind, or this process."""
    if request.param == "ray":
        pytest.importorskip("ray")
    real = request.param != "simulated"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", token_hex(32))  # without one, Ray keeps one in the user's home
        with Actors(Kernel(WallClock() if real else None), PLACES[request.param]()) as actors:
            yield actors


def shards_of(*sizes: int) -> list[Rows]:
    return [Rows(np.random.default_rng(size).standard_normal(size)) for size in sizes]


def test_sums_are_the_same_to_the_last_bit_wherever_shards_are(actors: Actors) -> None:
    shards = shards_of(3, 1, 6, 4, 9)
    here, placed = Here(shards), Placed(actors, shards)

    async def main(map: Map) -> list[Any]:
        await map.run("scale", 2.0)
        total = await map.run("total")
        return [total["sum"], int(total["num"]), await kth_largest(map, 7), map.num_rows]

    assert actors.kernel.run(main(placed)) == alone(main(here))


def test_a_shard_is_sent_once_and_its_sums_pass_up_the_tree(actors: Actors) -> None:
    if not hasattr(actors.places[-1], "pid"):
        pytest.skip("nothing is packed there")
    placed = Placed(actors, shards_of(50_000, 50_000, 50_000, 50_000))

    async def main() -> tuple[int, int]:
        desks: Any = actors.desks[1:]
        await placed.run("scale", 2.0)
        sent, heard = sum(desk.bytes for desk in desks), sum(desk.heard_bytes for desk in desks)
        for _ in range(3):
            await placed.run("wide")
        return sum(d.bytes for d in desks) - sent, sum(d.heard_bytes for d in desks) - heard

    sent, heard = actors.kernel.run(main())
    assert sent < 10_000  # of calls, where a shard takes 400,000
    assert 3 * WIDE <= heard < 4 * WIDE  # one sum of each call, not one for each shard


def test_a_killed_place_starts_again_and_knows_what_it_was_told(actors: Actors) -> None:
    place: Any = actors.places[-1]
    if not hasattr(place, "pid"):
        pytest.skip("no process to be killed")
    shards = shards_of(4, 5, 6)
    placed = Placed(actors, shards)

    async def main(map: Map, kill: bool) -> list[float]:
        await map.run("scale", 3.0)
        totals = [float((await map.run("grow"))["sum"])]
        if kill:
            os.kill(place.pid, signal.SIGKILL)
        totals.append(float((await map.run("grow"))["sum"]))
        totals.append(float((await map.run("total"))["sum"]))
        return totals

    pid = place.pid
    told = actors.kernel.run(main(placed, True))
    assert place.pid != pid
    assert told == alone(main(Here(shards_of(4, 5, 6)), False))


def test_a_killed_place_starts_again_for_all_that_have_shards_there(actors: Actors) -> None:
    place: Any = actors.places[-1]
    if not hasattr(place, "pid"):
        pytest.skip("no process to be killed")

    async def grown(map: Map) -> float:
        return float((await map.run("grow"))["sum"])

    async def main(maps: list[Map], kill: Callable[[], object]) -> list[float]:
        told: list[float] = []
        for map in maps:
            await map.run("scale", 3.0)
        for _ in range(3):
            told += [await grown(map) for map in maps]
            kill()
            told += await actors.kernel.gather(*(actors.kernel.spawn(grown(map)) for map in maps))
            kill()
        return told

    here = [Here(shards_of(4, 5, 6)) for _ in range(3)]
    maps = [Placed(actors, shards_of(4, 5, 6)) for _ in range(3)]
    told = actors.kernel.run(main([*maps], lambda: os.kill(place.pid, signal.SIGKILL)))
    assert told == actors.kernel.run(main([*here], lambda: None))


def test_a_place_that_is_lost_in_the_middle_of_a_call_repeats_it_alone(
    actors: Actors, tmp_path: Path
) -> None:
    if not hasattr(actors.places[-1], "pid"):
        pytest.skip("no process to be killed")
    shards = shards_of(4, 5, 6, 7)
    placed = Placed(actors, shards)

    async def main(map: Map, method: str) -> float:
        await map.run("scale", 3.0)
        await map.run(method, str(tmp_path / "died"))
        return float((await map.run("total"))["sum"])

    assert actors.kernel.run(main(placed, "grow_or_die_once")) == pytest.approx(
        alone(main(Here(shards_of(4, 5, 6, 7)), "grow_at_once")), rel=1e-12
    )
    assert (tmp_path / "died").exists()


def test_a_fit_is_the_same_over_any_places_whatever_becomes_of_them(actors: Actors) -> None:
    X, _ = bars(BSC, 101, 0, size=3)
    killed = hasattr(actors.places[-1], "pid")

    def fitted(num: int, fit: Callable[[BSC, list[Shard]], object], progress: Progress | None = None) -> BSC:
        coder = BSC(6, n_active=2, max_iter=6, random_state=0, progress=progress)
        fit(coder, [coder.shard(X[rows]) for rows in parts(num, len(X))])
        return coder

    def here(coder: BSC, shards: list[Shard]) -> None:
        alone(coder.fit_over(Here(shards), X))

    def placed(coder: BSC, shards: list[Shard]) -> None:
        actors.kernel.run(coder.fit_over(Placed(actors, shards), X))

    def kill(phase: str, done: int, total: int) -> None:
        place: Any = actors.places[-1]
        if killed and done in (2, 4):  # with and without a cut
            os.kill(place.pid, signal.SIGKILL)

    found, same, one = fitted(3, placed, kill), fitted(3, here), fitted(1, here)
    np.testing.assert_array_equal(found.components_, same.components_)
    assert (found.free_energy_, found.noise_) == (same.free_energy_, same.noise_)
    np.testing.assert_allclose(found.components_, one.components_, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose([found.noise_, *found.prior_], [one.noise_, *one.prior_], rtol=1e-10)


def test_a_place_answers_while_a_shard_computes(actors: Actors, tmp_path: Path) -> None:
    if actors.kernel.clock.virtual:
        pytest.skip("nothing takes its time there")
    placed, pipe = Placed(actors, shards_of(3)), tmp_path / "pipe"
    os.mkfifo(pipe)
    other = actors.create(Worker, 1, Rows([1.0]), on=actors.places[min(1, len(actors.places) - 1)])

    async def main() -> Sums:
        waits = actors.kernel.spawn(placed.run("wait", str(pipe)))
        with await actors.kernel.offload(open, pipe, "w"):  # when the shard reads it
            await other.meet([])
        return await waits

    assert int(actors.kernel.run(main())["num"]) == 3


def test_shards_are_let_go_of(actors: Actors) -> None:
    placed = Placed(actors, shards_of(3, 4))

    async def main() -> list[int]:
        await placed.run("wide")
        workers = list(placed._workers)
        placed.close()
        for worker in workers:
            with pytest.raises(ActorLostError):
                await worker.meet([])
        return [int((await placed.run("num"))["num"])]

    assert actors.kernel.run(main()) == [7]


def test_errors_of_shards_are_told(actors: Actors) -> None:
    placed = Placed(actors, shards_of(1, 2, 3))
    with pytest.raises(ValueError, match="no such thing"):
        actors.kernel.run(placed.run("fail"))
    assert int(actors.kernel.run(placed.run("total"))["num"]) == 6
    if hasattr(actors.places[-1], "pid"):
        with pytest.raises(LightworkError, match="ended 3 times in die"):
            actors.kernel.run(placed.run("die"))
