"""A game played by a population, at any place, from a file: what `lightwork simulate` does.

    report = simulate(read_game(Path("game.yaml"), agents=1_000_000), "sim:4")

Places: `local` is this process, `process:N` N processes of this machine, `ray:N` or `ray:N@ADDRESS` as many
in a Ray cluster (one, if no number is said), all in real time; `sim:N` is N simulated hosts in virtual time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightwork.agents.number_game import NumberGame, Played, Round, play
from lightwork.agents.population import MAX_AGENTS, read_config
from lightwork.errors import RangeError, SpecError
from lightwork.runtime.actors import Actors
from lightwork.runtime.clock import VirtualClock, WallClock, cpu_s
from lightwork.runtime.garbage import rarely
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.mailbox import MAX_PLACES
from lightwork.runtime.places import Place
from lightwork.runtime.places.local import Local
from lightwork.runtime.places.simulated import Simulated
from lightwork.runtime.trace import Trace

MAX_HOSTS = MAX_PLACES - 1
FREE = Simulated()
"""A host whose messages take no time."""

Perform = Callable[[Actors, Coroutine[Any, Any, Played]], Played]
"""Runs a game to its end, on the kernel of its actors."""


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a game. place: with "real" or "simulated" before it. seconds: on the clock of that place.

    cpu_s: of this process. messages: of the moderator, to groups and from them. peak_bytes: the most memory
    that this process ever held.
    """

    place: str
    agents: int
    groups: int
    rounds: tuple[Round, ...]
    seconds: float
    cpu_s: float
    messages: int
    peak_bytes: int

    def figures(self) -> dict[str, Any]:
        return {
            "place": self.place,
            "agents": self.agents,
            "groups": self.groups,
            "seconds": round(self.seconds, 6),
            "cpu_s": round(self.cpu_s, 3),
            "messages": self.messages,
            "peak_bytes": self.peak_bytes,
        }


def read_game(file: Path, *, agents: int | None = None) -> NumberGame:
    """A game file. Its population may be another file's name, beside it. Raises SpecError, RangeError."""
    said = read_config(file)
    kind = said.get("game")
    if kind != "numbers":
        raise SpecError(f"{file} has the game {kind!r:.40}", expected="numbers", fix="game: numbers")
    if isinstance(said.get("population"), str):
        said["population"] = read_config(file.parent / said["population"])
    return NumberGame.of(said, agents=agents)


def simulate(
    game: NumberGame,
    place: str = "local",
    *,
    seed: int = 0,
    host: Simulated = FREE,
    trace: Trace | None = None,
    watch: Callable[[Round], object] = lambda done: None,
    perform: Perform | None = None,
) -> Report:
    """Play a game at a place. host: what each host of `sim:N` is like. trace: gets a span for each round, and
    of each group's part in it. watch: see `play`. perform: runs it, and may look at it meanwhile."""
    virtual, hosts = parse_place(place, host)
    kernel = Kernel(VirtualClock() if virtual else WallClock(), seed=seed, trace=trace)
    start_cpu_s = cpu_s()
    with rarely(), Actors(kernel, hosts) as actors:
        places = actors.places[1:] or actors.places
        if trace is not None:
            trace.about |= about(game, place)
        start_s = kernel.now()
        main = play(game, actors, places, watch)
        played: Played = kernel.run(main) if perform is None else perform(actors, main)
        return Report(
            place=label(place),
            agents=game.population.total,
            groups=len(played.groups),
            rounds=tuple(played.rounds),
            seconds=kernel.now() - start_s,
            cpu_s=cpu_s() - start_cpu_s,
            messages=played.messages,
            peak_bytes=peak_bytes(),
        )


def parse_place(text: str, host: Simulated = FREE) -> tuple[bool, list[Place]]:
    """Whether its clock is virtual, and its places beside this process. Raises SpecError."""
    kind, colon, rest = text.partition(":")
    if text == "local":
        return False, []
    said, at, address = rest.partition("@") if kind == "ray" else (rest, "", "")
    if kind == "ray" and colon and not at and not said.isdecimal():
        said, address = "1", said
    number = int(said) if said.isdecimal() and len(said) < 6 else 0
    if kind not in ("process", "ray", "sim") or not 1 <= number <= MAX_HOSTS:
        raise SpecError(
            f"the place is {text!r:.40}",
            expected=f"local, process:N, ray:N, ray:N@ADDRESS or sim:N, with N from 1 to {MAX_HOSTS}",
            fix="--place process:2",
        )
    names = [f"{kind} {i}" for i in range(number)]
    if kind == "sim":
        return True, [replace(host, name=name) for name in names]
    if kind == "process":
        from lightwork.runtime.places.process import Process

        return False, [Process(name) for name in names]
    from lightwork.runtime.places.ray import Ray

    return False, [Ray(name, address=address) for name in names]


def about(game: NumberGame, place: str) -> dict[str, Any]:
    """What a trace of a game says of it, in plain values. places: "here" is this process."""
    _, hosts = parse_place(place)
    names = [Local().name, *(host.name for host in hosts)]
    return {"agents": game.population.total, "rounds": game.rounds, "places": names}


def label(place: str) -> str:
    """A place with what its time is."""
    return f"{'simulated' if place.startswith('sim:') else 'real'}: {place}"


def whole_number(text: str) -> int:
    """Of 5000, 1e6, 2.5e5. Raises RangeError."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 1 <= number <= MAX_AGENTS or not number.is_integer():
        raise RangeError(f"{text!r:.40} agents", expected=f"a whole number from 1 to {MAX_AGENTS:,}")
    return int(number)


def peak_bytes() -> int:
    """The most memory that this process ever held, as the system counts it; 0 where it does not."""
    if sys.platform == "win32":
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
