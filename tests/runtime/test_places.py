"""The laws of light actors, on every place."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from light_actors import Courier, Log, Node, Player, Sender

from lightwork.errors import HostLostError, SpecError
from lightwork.runtime import CancelledError, Kernel, WallClock
from lightwork.runtime.actors import Actors, Ref
from lightwork.runtime.places.process import Process
from lightwork.runtime.places.ray import Ray
from lightwork.runtime.places.simulated import Simulated

PLACES = {
    "local": list,
    "simulated": lambda: [
        Simulated(latency_s=1e-3, bytes_per_s=1e6, message_s=1e-5),
        Simulated(message_s=1e-4, cores=2),
    ],
    "process": lambda: [Process(), Process()],
    "ray": lambda: [Ray(), Ray()],
}
MARKS = {"process": [pytest.mark.multiproc], "ray": [pytest.mark.slow]}
laws = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass
class World:
    """A kernel and its places, for many programs one after another."""

    kernel: Kernel
    actors: Actors

    def make(self, n: int, cls: type, *args: Any) -> list[Ref]:
        """n actors, at all places in turn."""
        on = self.actors.places
        return [self.actors.create(cls, *args, on=on[i % len(on)]) for i in range(n)]

    def run(self, main: Any) -> Any:
        return self.kernel.run(main)


@pytest.fixture(scope="module", params=[pytest.param(name, marks=MARKS.get(name, [])) for name in PLACES])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    real = request.param in ("process", "ray")
    if request.param == "ray":
        pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", token_hex(32))  # without one, Ray keeps one in the user's home
        kernel = Kernel(WallClock() if real else None, seed=3)
        with Actors(kernel, PLACES[request.param]()) as actors:
            yield World(kernel, actors)


Sent = list[tuple[int, list[tuple[int, str]]]]
"""Sender; to whom and how."""
sent = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.tuples(st.integers(0, 2), st.sampled_from("tas")), max_size=12)),
    min_size=1,
    max_size=6,
)


@laws
@given(script=sent)
def test_messages_of_a_sender_come_once_and_in_order(world: World, script: Sent) -> None:
    logs = world.make(3, Log)
    senders = [world.actors.create(Sender, i, on=world.actors.places[i % 2 - 1]) for i in range(4)]

    async def main() -> list[list[Any]]:
        done = [
            senders[sender].send([logs[to] for to, _ in what], "".join(kind for _, kind in what))
            for sender, what in script
        ]
        await world.kernel.gather(*done)
        # what was told only is on its way before this, from each sender
        await world.kernel.gather(*(s.send(logs, "aaa") for s in senders))
        return await world.kernel.gather(*(log.read() for log in logs))

    heard = world.run(main())
    expected = Counter((sender, to) for sender, what in script for to, _ in what)
    for to, log in enumerate(heard):
        by_sender: dict[int, list[int]] = defaultdict(list)
        for sender, number in log:
            by_sender[sender].append(number)
        assert by_sender == {s: [*range(1, 2 + expected[s, to])] for s in range(4)}


graphs = st.lists(
    st.tuples(st.integers(0, 4), st.lists(st.integers(0, 20), max_size=4)), min_size=1, max_size=20
)


@laws
@given(graph=graphs)
def test_a_pure_program_has_the_same_result_everywhere(
    world: World, graph: list[tuple[int, list[int]]]
) -> None:
    """Futures of all places, pending or done, are arguments at all places."""
    factors = [1, 2, -1, 3, 5]
    nodes = [world.actors.create(Node, f, on=p) for f, p in zip(factors, _places(world, 5), strict=True)]
    values: list[int] = []
    for node, before in graph:
        args = [values[i % len(values)] for i in before] if values else []
        values.append(factors[node] * sum(args) + len(args))

    async def main() -> list[int]:
        futures: list[Any] = []
        for node, before in graph:
            args = [futures[i % len(futures)] for i in before] if futures else []
            futures.append(nodes[node].join(*args))
        return await world.kernel.gather(*futures)

    assert world.run(main()) == values


def _places(world: World, n: int) -> list[Any]:
    on = world.actors.places
    return [on[i % len(on)] for i in range(n)]


@laws
@given(cancelled=st.lists(st.booleans(), min_size=1, max_size=12))
def test_what_is_cancelled_before_it_begins_is_not_done(world: World, cancelled: list[bool]) -> None:
    logs = world.make(3, Log)

    async def main() -> list[Any]:
        futures = [logs[i % 3].note(i) for i in range(len(cancelled))]
        for future, cancel in zip(futures, cancelled, strict=True):
            if cancel:
                world.kernel.cancel(future)
        for future, cancel in zip(futures, cancelled, strict=True):
            if cancel:
                with pytest.raises(CancelledError):
                    await future
            else:
                await future
        return await world.kernel.gather(*(log.read() for log in logs))

    heard = sorted(what for log in world.run(main()) for what in log)
    assert heard == [i for i, cancel in enumerate(cancelled) if not cancel]


@laws
@given(bad=st.lists(st.sampled_from(["same", "fail", "fail_slowly"]), min_size=1, max_size=12))
def test_an_actor_that_raises_fails_that_message_only(world: World, bad: list[str]) -> None:
    nodes = world.make(3, Node, 1)

    async def main() -> list[Any]:
        futures = [getattr(nodes[i % 3], method)(f"{i}") for i, method in enumerate(bad)]
        told: list[Any] = []
        for future in futures:
            try:
                told.append(("same", await future))
            except ValueError as error:
                told.append(("fail", str(error)))
        return told

    assert world.run(main()) == [(method[:4], f"{i}") for i, method in enumerate(bad)]


@pytest.mark.parametrize("method", ["fail", "fail_slowly"])
@pytest.mark.parametrize("how", ["told", "dropped", "kept"])
def test_an_error_that_nobody_sees_is_reported(world: World, method: str, how: str) -> None:
    [*_, node] = world.make(3, Node, 1)
    kept: list[Any] = []

    async def main() -> None:
        if how == "told":
            node.tell(method, "nobody waits")
        else:
            future = getattr(node, method)("nobody waits")
            if how == "kept":
                kept.append(future)
            del future
        for _ in range(20):  # the report takes its way, too
            await node.same(1)
            await world.kernel.sleep(0.005)

    with pytest.raises(ValueError, match="nobody waits"):
        world.run(main())


def test_what_cannot_be_sent_fails_alone(world: World) -> None:
    if len(world.actors.places) == 1 or isinstance(world.actors.places[1], Simulated):
        pytest.skip("nothing is packed there")
    node = world.actors.create(Node, 1, on=world.actors.places[1])

    async def main() -> list[Any]:
        good, bad = node.same(1), node.same(lambda: None)
        with pytest.raises(Exception, match=r"(?i)pickle|local object"):
            await bad
        return [await good, await node.same(2)]

    assert world.run(main()) == [1, 2]


def test_a_hundred_thousand_calls_under_way_lose_none(world: World) -> None:
    node = world.make(3, Node, 2)[-1]

    async def main() -> int:
        calls = [node.start(i) for i in range(100_000)]
        return sum(await world.kernel.gather(*calls))

    assert world.run(main()) == 100_000 * 99_999


def test_a_payload_goes_from_its_maker_to_its_last_reader_only(world: World) -> None:
    places = world.actors.places
    if len(places) == 1:
        pytest.skip("nothing moves")
    num_bytes = 1_000_000
    maker, passer, last = (world.actors.create(Courier, on=places[i]) for i in (1, 2, 2))

    async def main() -> tuple[int, int, int]:
        await world.kernel.gather(maker.sent_bytes(), passer.sent_bytes(), last.sent_bytes())
        before = [await each.sent_bytes() for each in (maker, passer)]
        here = _through_here(world)
        weight = await passer.pass_on(maker.make(num_bytes), [passer, passer, last])
        while not isinstance(weight, int):  # each that passed it on told us of a future
            weight = await weight
        after = [await each.sent_bytes() for each in (maker, passer)]
        return weight, after[0] - before[0] + after[1] - before[1], _through_here(world) - here

    weight, moved, here = world.run(main())
    assert weight == num_bytes
    assert here < 10_000
    if not isinstance(places[1], Simulated):
        assert num_bytes < moved < num_bytes + 10_000


@laws
@given(script=st.lists(st.tuples(st.integers(1, 2), st.integers(1, 2), st.booleans()), max_size=8))
def test_no_result_is_kept_when_nobody_holds_it(world: World, script: list[tuple[int, int, bool]]) -> None:
    """Payloads are made and passed on; some that pass one on are not waited for, and some are cancelled."""
    places = world.actors.places
    if not isinstance(places[-1], Process | Ray):
        pytest.skip("nothing is kept for others there")
    couriers = [world.actors.create(Courier, on=place) for place in places]

    async def main() -> list[int]:
        kept = []
        for maker, passer, wait in script:
            passed = couriers[passer].pass_on(couriers[maker].make(10), couriers[1:])
            if wait:
                kept.append(passed)
            else:
                world.kernel.cancel(couriers[maker].make(20))
        for passed in kept:
            weight = await passed
            while not isinstance(weight, int):
                weight = await weight
        del passed, kept
        for _ in range(100):
            left = await world.kernel.gather(*(courier.kept() for courier in couriers[1:]))
            if max(left) == 0:
                break
            await world.kernel.sleep(0.01)
        return left

    if script:
        assert world.run(main()) == [0, 0]


def _through_here(world: World) -> int:
    """Bytes that this process has sent and received."""
    return sum(desk.bytes + getattr(desk, "heard_bytes", 0) for desk in world.actors.desks)


def test_draws_depend_on_seed_and_key_only(world: World) -> None:
    places = world.actors.places
    refs = [world.actors.create(Player, f"p{i}", on=places[-i % len(places)], key=f"p{i}") for i in range(4)]

    async def main() -> list[Any]:
        return await world.kernel.gather(*(ref.draw() for ref in refs for _ in range(2)))

    kernel = Kernel(seed=3)
    alone = Actors(kernel)
    same = [alone.create(Player, f"p{i}", key=f"p{i}") for i in range(4)]
    assert world.run(main()) == kernel.run(kernel.gather(*(ref.draw() for ref in same for _ in range(2))))


def test_killed_and_paused_actors(world: World) -> None:
    actors = world.actors
    *_, paused, doomed = world.make(3, Player, "x")

    async def main() -> None:
        slow = doomed.think(60.0)
        waits = doomed.draw()
        actors.kill(doomed)
        for future in (slow, waits, doomed.draw()):
            with pytest.raises(Exception, match="not there any more"):
                await future
        actors.pause(paused)
        first = paused.draw()
        await world.kernel.sleep(0.05)
        assert not first.done
        actors.resume(paused)
        assert (await first)[1] == 1
        assert (await paused.draw())[1] == 2

    world.run(main())


def test_saved_actors_go_on_where_they_were(world: World) -> None:
    actors = world.actors
    places = _places(world, 4)[1:]
    friend = actors.create(Player, "friend", on=places[0])
    players = [actors.create(Player, f"p{i}", friend, on=p, key=f"p{i}") for i, p in enumerate(places)]

    async def main() -> None:
        await world.kernel.gather(*(p.draw_together() for p in players[:2]))
        saved = json.loads(json.dumps(await actors.save()))
        expected = [await p.draw_together() for p in players]
        assert [await p.draw_together() for p in players] != expected
        await actors.restore(saved)
        assert [await p.draw_together() for p in players] == expected
        busy = players[0].think(0.2)
        with pytest.raises(SpecError, match="is busy"):
            await actors.save()
        await busy

    world.run(main())


def _kill_process(world: World, place: Any) -> None:
    os.kill(place.pid, signal.SIGKILL)


def test_a_killed_host_fails_its_futures_and_comes_back_as_saved(world: World) -> None:
    place = world.actors.places[-1]
    if not hasattr(place, "pid"):
        pytest.skip("no process to be killed")
    actors, kernel = world.actors, world.kernel
    player = actors.create(Player, "p", on=place, key="p")
    other = actors.create(Player, "o", player, on=actors.places[1])

    async def main() -> None:
        await player.draw()
        saved = json.loads(json.dumps(await actors.save()))
        expected = await player.draw()
        await other.draw_together()
        waits = [player.think(600.0), player.think(600.0)]
        await kernel.sleep(0.05)
        _kill_process(world, place)
        for future in waits:
            with pytest.raises(HostLostError, match=f"place {len(actors.places) - 1} "):
                await future
        with pytest.raises(HostLostError):
            await player.draw()
        assert actors.counts()[-1].lost
        await actors.restore(saved, on=place)
        assert await player.draw() == expected
        assert (await other.draw_together())[1][:2] == ("p", 3)

    world.run(main())


def test_counts_are_of_each_place(world: World) -> None:
    refs = world.make(3, Player, "x")

    async def main() -> None:
        await world.kernel.gather(*(ref.draw() for ref in refs))

    world.run(main())
    counts = world.actors.counts()
    assert [count.place for count in counts] == [place.name for place in world.actors.places]
    assert [count for count in counts if count.lost or not count.messages] == []
