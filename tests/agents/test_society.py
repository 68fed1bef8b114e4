"""Environments: a tree by names, events and who hears of them, what can be done with a place."""

from __future__ import annotations

import pytest

from lightwork.agents.society import Env, Event, Held, Spot, Tell, Value, event
from lightwork.errors import RangeError, SpecError
from lightwork.runtime.actors import Actors
from lightwork.runtime.clock import WallClock
from lightwork.runtime.effects import Sleep
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.places.process import Process
from lightwork.runtime.places.simulated import Simulated


def town() -> Env:
    return Env("town", [Spot("square", (1, 2), [Held("bench")]), Value("weather", "sunny")])


def test_environments_are_found_by_their_names():
    root = town()
    assert root.find("square/bench").path == "town/square/bench"
    assert root.find("square").remove("bench").path == "bench"
    with pytest.raises(SpecError, match="'town/square' has no 'bench'"):
        root.find("square/bench")
    with pytest.raises(SpecError, match="expected: weather"):
        root.find("weathr")


def test_a_tree_stays_a_tree():
    root = town()
    with pytest.raises(SpecError, match="inside"):
        root.find("square/bench").add(root)
    with pytest.raises(SpecError, match="has a 'weather'"):
        root.add(Env("weather"))
    with pytest.raises(SpecError, match="has a 'square'"):
        Env("elsewhere").add(root.find("square"))
    for name in ("", "a/b"):
        with pytest.raises(SpecError, match="named"):
            Env(name)


def test_listeners_hear_what_was_called_with_what_and_what_it_gave():
    root, heard = town(), []
    square = root.find("square")
    square.listen("move_by", heard.append)
    assert square.move_by(1, y=3) == (2, 5)
    square.move_to(0, 0)
    assert heard == [Event("town/square", "move_by", {"x": 1, "y": 3}, (2, 5))]
    square.unlisten("move_by", heard.append)
    square.move_by(1, 1)
    assert len(heard) == 1
    with pytest.raises(SpecError, match="no event 'mov_by'"):
        square.listen("mov_by", heard.append)
    with pytest.raises(SpecError, match="no event 'find'"):
        square.listen("find", heard.append)


def test_a_listener_may_change_what_is_heard_and_listeners_come_in_order():
    weather, heard = Value("weather", "sunny"), []

    def once(happened: Event) -> None:
        heard.append(("once", happened.args["value"]))
        weather.unlisten("set", once)

    weather.listen("set", once)
    weather.listen("set", lambda happened: heard.append(("always", happened.args["value"])))
    weather.set("rain")
    weather.set("snow")
    assert heard == [("once", "rain"), ("always", "rain"), ("always", "snow")]
    assert weather.get() == "snow"


def test_one_at_a_time_holds_a_thing():
    bench = Held("bench")
    assert bench.hold("ann")
    assert bench.hold("ann")
    assert not bench.hold("bob")
    with pytest.raises(RangeError, match="'bob' lets go of 'bench', held by 'ann'"):
        bench.let_go("bob")
    bench.let_go("ann")
    assert bench.hold("bob")


class Bell(Env):
    @event
    async def ring(self, times: int = 1) -> int:
        return 2 * times


class Ear:
    def __init__(self) -> None:
        self.heard: list[Event] = []

    def hear(self, happened: Event) -> None:
        self.heard.append(happened)

    def all(self) -> list[Event]:
        return self.heard


@pytest.mark.parametrize(
    "where", ["here", "simulated", pytest.param("processes", marks=pytest.mark.multiproc)]
)
def test_environments_are_actors_and_listeners_may_be_actors_elsewhere(where: str):
    places = {"here": [], "simulated": [Simulated(), Simulated()], "processes": [Process(), Process()]}[where]
    kernel = Kernel(WallClock() if where == "processes" else None)
    with Actors(kernel, places) as actors:
        first, second = actors.places[1:] or [None, None]

        async def main() -> list[Event]:
            bell = actors.create(Bell, "bell", on=first)
            ear = actors.create(Ear, on=second)
            await bell.listen("ring", Tell(ear, "hear"))
            assert await bell.ring() == 2
            while not (heard := await ear.all()):
                await Sleep(0.01)
            return heard

        assert kernel.run(main()) == [Event("bell", "ring", {"times": 1}, 2)]
