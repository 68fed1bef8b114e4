"""What is seen of a place, and places that are paused and killed as a whole: here, simulated, elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from light_actors import Log, Node, Player

from lightwork.errors import ActorLostError, HostLostError, SpecError
from lightwork.runtime import Kernel, Sleep, WallClock
from lightwork.runtime.actors import Actors, Ref
from lightwork.runtime.places.process import Process
from lightwork.runtime.places.simulated import Simulated
from lightwork.runtime.watch import AT_A_LOOK, AT_A_PAGE, EDGES_S, LONGEST, Look, Page

PLACES: dict[str, Any] = {
    "local": lambda: (Kernel(), []),
    "simulated": lambda: (Kernel(), [Simulated(message_s=1e-6), Simulated(message_s=1e-5)]),
    "process": lambda: (Kernel(WallClock()), [Process(), Process()]),
}


@pytest.fixture(params=["local", "simulated", pytest.param("process", marks=pytest.mark.multiproc)])
def actors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Actors]:
    monkeypatch.syspath_prepend(str(request.path.parent))
    kernel, places = PLACES[request.param]()
    with Actors(kernel, places) as made:
        yield made


def made(actors: Actors, num: int, cls: type, *args: Any) -> list[Ref]:
    """At the last place."""
    return [actors.create(cls, *args, on=actors.places[-1]) for _ in range(num)]


def last(actors: Actors) -> int:
    return len(actors.places) - 1


def test_a_look_counts_by_state_and_class(actors: Actors) -> None:
    async def main() -> None:
        sleepers, logs = made(actors, 5, Player, "p"), made(actors, 3, Log)
        await actors.kernel.gather(*(log.note(1) for log in logs))
        asleep = [sleeper.think(3600.0) for sleeper in sleepers[:4]]
        behind = [sleepers[0].think(0.0), sleepers[0].think(0.0)]
        actors.pause(logs[0])
        await logs[1].note(2)
        told: Look = await actors.keeper(last(actors), "look", 2)
        assert told.kinds == {"Player": 5, "Log": 3}
        assert told.tally == (4, 4, 1, 2)
        assert sum(told.busy_for) == 4
        assert len(told.busy_for) == len(EDGES_S) - 1
        assert [each.id for each in told.slowest] == [ref.id for ref in sleepers[:2]]
        assert {each.method for each in told.slowest} == {"think"}
        actors.kill(sleepers[0])
        actors.kill(logs[2])
        await logs[1].note(3)
        told = await actors.keeper(last(actors), "look", 9)
        assert told.kinds == {"Player": 4, "Log": 2}
        assert told.tally == (3, 3, 1, 0)
        for answer in [asleep[0], *behind]:
            with pytest.raises(ActorLostError):
                await answer
        for answer in asleep[1:]:
            answer.cancel()

    actors.kernel.run(main())


def test_pages_are_the_whole_list(actors: Actors) -> None:
    async def main() -> None:
        logs = made(actors, 23, Log)
        await actors.kernel.gather(*(log.note(1) for log in logs[:10]))
        actors.kill(logs[4])
        actors.pause(logs[7])
        await logs[0].note(2)
        found, after = [], None
        while True:
            part: Page = await actors.keeper(last(actors), "page", None, after, 10)
            found += part.actors
            after = part.after
            if after is None:
                break
        assert [each.id for each in found] == [log.id for log in logs]
        assert Counter(each.state for each in found) == {"idle": 21, "killed": 1, "paused": 1}
        killed: Page = await actors.keeper(last(actors), "page", "killed", None, 10)
        assert [each.id for each in killed.actors] == [logs[4].id]

    actors.kernel.run(main())


def test_an_actor_is_described_by_its_fields(actors: Actors) -> None:
    async def main() -> None:
        log, node, unasked = *made(actors, 1, Log), *made(actors, 1, Node, 7), *made(actors, 1, Node, 8)
        await log.note("<b>" + "x" * 3 * LONGEST)
        await node.start(1)
        seen, fields = await actors.keeper(last(actors), "describe", log.id)
        assert (seen.kind, seen.state, seen.method) == ("Log", "idle", None)
        ((name, text),) = fields
        assert name == "heard"
        assert text.startswith("['<b>xxx")
        assert len(text) <= LONGEST
        assert (await actors.keeper(last(actors), "describe", node.id)).fields == [("factor", "7")]
        new = (await actors.keeper(last(actors), "describe", unasked.id)).fields
        assert new[1] == ("to be made from", "(8,)")
        for nobody in (1 << 40, 255, -1):
            with pytest.raises(ActorLostError, match="no actor"):
                await actors.keeper(last(actors), "describe", nobody)

    actors.kernel.run(main())


def test_a_paused_place_takes_no_message_and_loses_none(actors: Actors) -> None:
    async def main() -> None:
        sleeper, log = *made(actors, 1, Player, "p"), *made(actors, 1, Log)
        asleep = sleeper.think(0.01)
        await log.note(0)
        await actors.pause_place(last(actors))
        answers = [log.note(i) for i in range(1, 20)]
        log.tell("note", 20)
        await asleep  # what it did went on
        told: Look = await actors.keeper(last(actors), "look", 1)
        assert told.tally == (2, 0, 2, 20)
        with pytest.raises(SpecError, match="paused place"):
            await actors.save()
        assert not any(answer.done for answer in answers)
        page: Page = await actors.keeper(last(actors), "page", "paused", None, 9)
        assert len(page.actors) == 2
        await actors.resume_place(last(actors))
        assert await actors.kernel.gather(*answers) == [*range(2, 21)]
        assert await log.read() == [*range(21)]
        assert (await actors.keeper(last(actors), "look", 1)).tally == (2, 0, 0, 0)

    actors.kernel.run(main())


def test_a_killed_place_fails_what_was_asked_of_it(actors: Actors) -> None:
    async def main() -> None:
        sleeper, log = *made(actors, 1, Player, "p"), *made(actors, 1, Log)
        await log.note(0)
        asleep = sleeper.think(3600.0)
        await log.note(1)
        await actors.kill_place(last(actors))
        with pytest.raises(ActorLostError) as caught:
            await asleep
        with pytest.raises(ActorLostError):
            await log.note(2)
        (*_, count) = actors.counts()
        assert count.lost == isinstance(caught.value, HostLostError)
        assert count.lost or (count.idle, count.busy) == (0, 0)

    actors.kernel.run(main())


@pytest.mark.multiproc
def test_a_place_is_killed_while_it_starts() -> None:
    kernel = Kernel(WallClock())

    async def main() -> None:
        log = actors.create(Log, on=actors.places[1])
        asked = log.note(1)
        await actors.kill_place(1)
        with pytest.raises(HostLostError, match="was killed"):
            await asked

    with Actors(kernel, [Process()]) as actors:
        kernel.run(main())


class Idle:
    __slots__ = ()

    def nothing(self) -> None:
        pass

    async def wait(self, seconds: float) -> None:
        await Sleep(seconds)


def test_a_look_is_at_part_of_many() -> None:
    kernel = Kernel()
    actors = Actors(kernel)
    num = AT_A_LOOK + AT_A_LOOK // 5
    refs = [actors.create(Idle) for _ in range(num)]

    async def main() -> None:
        first: Look = await actors.keeper(0, "look", 0)
        assert first.kinds == {"Idle": AT_A_LOOK}
        again: Look = await actors.keeper(0, "look", 0)
        assert again.kinds == {"Idle": num}
        for ref in refs:
            ref.wait(50.0)
        await Sleep(2.0)
        busy: Look = await actors.keeper(0, "look", 3)
        assert busy.tally.busy == num
        assert busy.every == 2
        assert sum(busy.busy_for) == pytest.approx(num, abs=2)
        assert busy.busy_for[EDGES_S.index(1.0)] == sum(busy.busy_for)

    kernel.run(main())


def test_a_page_looks_at_part_of_many() -> None:
    kernel = Kernel()
    actors = Actors(kernel)
    refs = [actors.create(Idle) for _ in range(AT_A_PAGE + 2)]
    actors.pause(refs[-1])

    async def main() -> None:
        await refs[-2].nothing()
        part: Page = await actors.keeper(0, "page", "paused", None, 5)
        assert part == ([], refs[AT_A_PAGE - 1].id)
        part = await actors.keeper(0, "page", "paused", part.after, 5)
        assert [each.id for each in part.actors] == [refs[-1].id]
        assert part.after is None

    kernel.run(main())


def test_what_was_restored_is_counted_once() -> None:
    kernel = Kernel()
    actors = Actors(kernel)
    log = actors.create(Log)

    async def main() -> None:
        await log.note(1)
        saved = await actors.save()
        assert (await actors.keeper(0, "look", 0)).kinds == {"Log": 1}
        await actors.restore(saved)
        assert (await actors.keeper(0, "look", 0)).kinds == {"Log": 1}
        actors.kill(log)
        await actors.create(Log).note(1)
        assert (await actors.keeper(0, "look", 0)).kinds == {"Log": 1}
        await actors.restore(saved)
        assert (await actors.keeper(0, "look", 0)).kinds == {"Log": 2}

    kernel.run(main())


def test_a_paused_host_begins_no_more_than_its_threads_when_it_goes_on() -> None:
    kernel = Kernel()
    actors = Actors(kernel, [Simulated(threads=2)])
    players = made(actors, 6, Player, "p")

    async def main() -> None:
        await actors.pause_place(1)
        asked = [player.think(1.0) for player in players]
        await Sleep(0.5)
        await actors.resume_place(1)
        assert (await actors.keeper(1, "look", 0)).tally.busy == 2
        await kernel.gather(*asked)
        assert kernel.now() == 3.5

    kernel.run(main())
