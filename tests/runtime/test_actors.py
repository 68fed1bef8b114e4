"""Light actors in one process: what they cost, what they refuse, and what simulated hosts make of them."""

from __future__ import annotations

import pickle
import tracemalloc
from typing import Any

import pytest
from light_actors import Log, Player, Stuck

from lightwork.errors import DeadlockError, SpecError
from lightwork.runtime import Kernel, Sleep, Trace
from lightwork.runtime.actors import Actors
from lightwork.runtime.garbage import rarely
from lightwork.runtime.places.process import Process
from lightwork.runtime.places.simulated import Simulated


class Small:
    """As small as an actor with something to remember is."""

    __slots__ = ("level",)
    made = 0

    def __init__(self, level: int) -> None:
        Small.made += 1
        self.level = level

    def get(self) -> int:
        return self.level

    async def think(self, seconds: float) -> int:
        await Sleep(seconds)
        return self.level


def test_an_idle_actor_takes_120_bytes_at_most() -> None:
    kernel, n = Kernel(), 20_000
    actors = Actors(kernel)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for i in range(n):
            actors.create(Small, i % 100)
        new, _ = tracemalloc.get_traced_memory()
        refs = [actors.ref(0, i << 8, Small) for i in range(n)]
        with_refs, _ = tracemalloc.get_traced_memory()
        kernel.run(kernel.gather(*(ref.think(1.0) for ref in refs)))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (new - before) / n <= 120
    assert (after - with_refs + new - before) / n <= 120


def test_an_actor_is_constructed_at_its_first_message() -> None:
    kernel = Kernel()
    actors = Actors(kernel)
    made = Small.made
    refs = [actors.create(Small, i) for i in range(3)]
    assert Small.made == made
    assert kernel.run(kernel.gather(refs[1].get(), refs[1].get())) == [1, 1]
    assert Small.made == made + 1


def test_an_actor_takes_one_message_at_a_time() -> None:
    kernel = Kernel()
    ref = Actors(kernel).create(Small, 5)
    assert kernel.run(kernel.gather(*(ref.think(1.0) for _ in range(10)))) == [5] * 10
    assert kernel.now() == 10.0


def test_ten_thousand_waiting_messages_are_no_recursion() -> None:
    kernel = Kernel()
    log = Actors(kernel).create(Log)
    numbers = kernel.run(kernel.gather(*(log.note_slowly(i) for i in range(10_000))))
    assert numbers == [*range(1, 10_001)]


def test_a_message_may_come_before_its_actor() -> None:
    """Who was given a Ref may be quicker than who creates."""
    kernel = Kernel()
    actors = Actors(kernel)
    early = actors.ref(0, 5 << 8, Log)

    async def main() -> list[int]:
        notes = [early.note(i) for i in range(3)]
        await kernel.sleep(1.0)
        assert not any(note.done for note in notes)
        actors.desks[0].put(5 << 8, (Log, 0))
        return await kernel.gather(*notes)

    assert kernel.run(main()) == [1, 2, 3]
    assert actors.counts()[0].idle == 1


def test_who_waits_for_ever_is_named() -> None:
    kernel = Kernel()
    ref = Actors(kernel).create(Stuck)

    async def main() -> None:
        await ref.wait()

    with pytest.raises(
        DeadlockError, match=r"main waits for Stuck 0\.wait; Stuck 0\.wait waits for a letter"
    ):
        kernel.run(main())


@pytest.mark.parametrize(
    "places", [(), (Simulated(latency_s=0.1), Simulated(threads=3))], ids=["here", "sim"]
)
def test_the_same_seed_has_the_same_trace(places: tuple[Simulated, ...]) -> None:
    def run(seed: int) -> str:
        kernel = Kernel(seed=seed, trace=Trace("test"))
        actors = Actors(kernel, places)
        on = actors.places
        players = [actors.create(Player, f"{i}", on=on[i % len(on)]) for i in range(20)]

        async def main() -> None:
            for player in players:
                _, _, drawn = await player.draw()
                player.tell("think", drawn)
            await kernel.gather(*(player.draw() for player in players))

        kernel.run(main())
        assert kernel.trace is not None
        return kernel.trace.hash()

    assert run(1) == run(1) != run(2)


def test_a_host_with_a_thread_for_each_call_serves_so_many_at_a_time() -> None:
    """60 calls that sleep a second: on 2 hosts of 5 threads 6 s, on hosts where they hold none 1 s."""
    for threads, seconds in ((5, 6.0), (None, 1.0)):
        kernel = Kernel()
        actors = Actors(kernel, [Simulated(threads=threads), Simulated(threads=threads)])
        refs = [actors.create(Small, i, on=actors.places[1 + i % 2]) for i in range(60)]
        kernel.run(kernel.gather(*(ref.think(1.0) for ref in refs)))
        assert kernel.now() == seconds


def test_a_message_takes_its_way_and_its_turn() -> None:
    """Ten at once to one host: all pass the link and the core one after another, and back."""
    kernel = Kernel()
    host = Simulated(message_s=0.5, latency_s=1.0, bytes_per_s=1000.0, message_bytes=100)
    actors = Actors(kernel, [host])
    ref = actors.create(Small, 7, on=host)
    assert kernel.run(kernel.gather(*(ref.get() for _ in range(10)))) == [7] * 10
    assert kernel.now() == pytest.approx(0.1 + 1.0 + 10 * 0.5 + 0.1 + 1.0)
    assert actors.counts()[1].bytes == 2 * 10 * 100


def test_actors_of_one_simulated_host_speak_without_its_link() -> None:
    kernel = Kernel()
    host = Simulated(latency_s=1.0)
    actors = Actors(kernel, [host])
    friend = actors.create(Player, "friend", on=host)
    player = actors.create(Player, "p", friend, on=host)
    kernel.run(kernel.gather(player.draw_together()))
    assert kernel.now() == 2.0


def test_a_ref_is_its_place_and_id() -> None:
    kernel = Kernel()
    actors = Actors(kernel)
    ref, other = actors.create(Small, 1), actors.create(Small, 2)
    assert ref == actors.ref(0, ref.id, Small) != other
    assert len({ref, actors.ref(0, ref.id, Small)}) == 1
    with pytest.raises(AttributeError, match="Small has no public method 'gte'"):
        ref.gte()
    with pytest.raises(AttributeError):
        ref._level()
    with pytest.raises(SpecError, match="part of a message"):
        pickle.dumps(ref)


def test_what_cannot_be_is_refused() -> None:
    kernel = Kernel()
    with pytest.raises(SpecError, match="the kernel's clock a virtual one"):
        Actors(kernel, [Process()])
    with pytest.raises(SpecError, match="not one of these actors' places"):
        Actors(kernel).create(Small, 1, on=Simulated())
    with pytest.raises(SpecError, match="255"):
        Actors(kernel, [Simulated()] * 255)


class Keeps:
    def __init__(self, what: Any) -> None:
        self.what = what

    def get(self) -> Any:
        return self.what


@pytest.mark.parametrize("what", [{1, 2}, {3: {4}}, [object()], b"bytes"], ids=repr)
def test_a_state_that_is_not_plain_is_refused(what: Any) -> None:
    kernel = Kernel()
    actors = Actors(kernel)
    ref = actors.create(Keeps, what)

    async def main() -> None:
        await ref.get()
        await actors.save()

    with pytest.raises(SpecError, match=r"Keeps 0.*what"):
        kernel.run(main())


def test_a_state_that_names_what_this_program_does_not_have_is_refused() -> None:
    kernel = Kernel()
    actors = Actors(kernel)
    for name in ("antigravity:Board", "os:system", "os"):
        saved = {"created": 1, "places": {"0": [[0, name, "state", None]]}}
        with pytest.raises(SpecError, match="no class of this program"):
            kernel.run(actors.restore(saved))


def test_plain_states_come_back() -> None:
    kernel = Kernel()
    actors = Actors(kernel)
    ref = actors.create(Small, 3)
    kept = actors.create(Keeps, None)

    async def main() -> Any:
        await ref.get()
        what = {"a": [1, 2.5, None, True], "b": (1, ("x",)), "c": ref, "$d": {ref: 1, (1,): 2}}
        keeps = actors.create(Keeps, what)
        saved = await actors.save()
        await keeps.get()
        again = await actors.save()
        await actors.restore(again)
        assert saved["places"]["0"][0] == again["places"]["0"][0]
        return [await keeps.get() == what, await kept.get()]

    assert kernel.run(main()) == [True, None]


def test_garbage_is_looked_for_again_afterwards() -> None:
    import gc

    before = gc.get_threshold()
    with rarely():
        assert gc.get_threshold() != before
        assert gc.get_freeze_count() > 0
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
