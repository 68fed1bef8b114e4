"""The number game: everybody names a number from 0 to 100, and who is closest to a ratio of the mean wins.

The game of AgentScope's largest simulations ("Very Large-Scale Multi-Agent Simulation in AgentScope", 2024).
Players live in groups, each at its place; the moderator sends a group one message per round and gets back
(sum, count). What won is told in the next round. Answers that are no number are left out of the mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

from lightwork._listing import nearest
from lightwork.agents.number_models import ModelAt, SharedModel
from lightwork.agents.number_players import (
    HIGHEST,
    UNIT,
    Asking,
    LevelPlayer,
    ModelPlayer,
    Rule,
    Said,
    decimal,
)
from lightwork.agents.population import Population, PopulationSpec
from lightwork.agents.society import Crowd, Group, Tally
from lightwork.errors import LightworkError, RangeError, SpecError
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Span

if TYPE_CHECKING:
    from lightwork.runtime.actors import Actors, Here, Ref
    from lightwork.runtime.places import Place

RATIOS = tuple(Fraction(text) for text in ("1/2", "2/3", "3/5", "51/100", "67/100"))
"""Of the paper; any other one may be played."""
MAX_ROUNDS, MAX_GROUPS = 10_000, 65_536
RULES = (
    "Everybody names a number from 0 to 100. Who is closest to {ratio} of the mean of all numbers wins. "
    "You may think first; end with your number.\n"
)
KEYS = ("game", "ratio", "rounds", "groups", "thinks_s", "players", "personas", "rules", "population")

MakeModel = Callable[[Kernel], SharedModel]
"""Makes a model where it is used. Travels to the places, so it is a function of a module or a dataclass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberGame:
    """What is played, and by whom.

    groups: of players; 0 is one for each place. thinks_s: what the answer of a player of a level takes.
    models: whom players ask, by turns; none: players have levels. personas: written by the model, or listed.
    rules: said before each question, {ratio} in them replaced.
    Raises SpecError and RangeError for what cannot be played.
    """

    population: PopulationSpec
    ratio: Fraction = Fraction(2, 3)
    rounds: int = 5
    groups: int = 0
    thinks_s: float = 0.0
    models: tuple[MakeModel, ...] = ()
    personas: Literal["listed", "model"] = "listed"
    rules: str = RULES

    def __post_init__(self) -> None:
        _within("ratio", self.ratio, 0.001, 1)
        _within("rounds", self.rounds, 1, MAX_ROUNDS, whole=True)
        _within("groups", self.groups, 0, MAX_GROUPS, whole=True)
        _within("thinks_s", self.thinks_s, 0, 1e6)
        if self.personas not in ("listed", "model"):
            raise SpecError(f"personas is {self.personas!r:.40}", expected="listed or model")
        if not isinstance(self.rules, str):
            raise SpecError(f"rules is {self.rules!r:.40}", expected="a text")
        if not self.models:
            for level in self.population.values("level"):
                Rule.of(level, 0)

    @classmethod
    def of(cls, said: Mapping[str, Any], *, agents: int | None = None) -> NumberGame:
        """What a game file says. agents: how many there are, instead of what it says."""
        for key in said:
            if key not in KEYS:
                near = nearest(str(key), KEYS) or ", ".join(KEYS)
                raise SpecError(f"the game has the key {key!r:.40}", expected=near)
        people = said.get("population")
        if not isinstance(people, Mapping):
            raise SpecError(f"population is {people!r:.60}", expected="total_num and distributions")
        players = said.get("players", "levels")
        listed = players if isinstance(players, list) else [players]
        given = {
            key: said[key] for key in ("rounds", "groups", "thinks_s", "personas", "rules") if key in said
        }
        return cls(
            population=PopulationSpec.of(people, agents),
            ratio=parse_ratio(said.get("ratio", "2/3")),
            models=() if listed == ["levels"] else tuple(ModelAt.of(one) for one in listed),
            **given,
        )

    def blocks(self, num_places: int) -> list[Block]:
        """Who is in which group: the players in order, in blocks of one size; the last may be smaller."""
        total = self.population.total
        size = ceil(total / min(self.groups or num_places, total))
        return [Block(self, first, min(total, first + size)) for first in range(0, total, size)]


@dataclass(frozen=True, slots=True)
class Round:
    """number: from 1. winning, mean: in millionths, rounded; None if nobody gave a number."""

    number: int
    players: int
    tally: Tally
    ratio: Fraction

    @property
    def exact_mean(self) -> Fraction | None:
        """In millionths."""
        return Fraction(self.tally.sum, self.tally.count) if self.tally.count else None

    @property
    def mean(self) -> int | None:
        return None if self.exact_mean is None else round(self.exact_mean)

    @property
    def winning(self) -> int | None:
        """The ratio times the mean: what the next round is told."""
        return None if self.exact_mean is None else round(self.exact_mean * self.ratio)

    def record(self) -> dict[str, Any]:
        """As plain values; numbers as decimals, exact to a millionth."""
        mean, winning = (None if x is None else decimal(x) for x in (self.mean, self.winning))
        invalid = self.players - self.tally.count
        counts = {"round": self.number, "answers": self.tally.count, "invalid": invalid}
        return counts | {"mean": mean, "winning": winning}


@dataclass(slots=True)
class Played:
    """What has been played so far. messages: of the moderator, to groups and from them."""

    groups: list[Ref]
    rounds: list[Round] = field(default_factory=list)
    messages: int = 0


@dataclass(slots=True)
class Block:
    """The players from first on, before last: who is in a group. Each place deals the population out anew.

    open: the models that they share there.
    """

    game: NumberGame
    first: int
    last: int
    open: list[SharedModel] = field(default_factory=list)

    def join(self, here: Here) -> Collection[Ref]:
        game, kernel = self.game, here.kernel
        population = game.population.deal(kernel.seed)
        if game.models:
            return self._asking(here, population)
        levels = population.column("level", 1)
        rules = {level: Rule.of(level, kernel.seed, game.thinks_s) for level in {*levels}}
        create, on = here.actors.create, here.actors.places[here.ref.place]
        block = range(self.first, self.last)
        return Crowd(here.actors, (create(LevelPlayer, rules[levels[i]], i, on=on) for i in block))

    def leave(self) -> None:
        for model in self.open:
            model.close()

    def _asking(self, here: Here, population: Population) -> Collection[Ref]:
        game, seed = self.game, here.kernel.seed
        rules = game.rules.replace("{ratio}", str(game.ratio))
        self.open = [make(here.kernel) for make in game.models]
        kernel, invent = here.kernel, game.personas == "model"
        shared = [Asking(kernel, model, seed, rules, invent) for model in self.open]
        create, on = here.actors.create, here.actors.places[here.ref.place]
        return [
            create(
                ModelPlayer, shared[i % len(shared)], i, population.attributes(i), on=on, key=f"player {i}"
            )
            for i in range(self.first, self.last)
        ]


async def play(
    game: NumberGame,
    actors: Actors,
    places: Sequence[Place],
    watch: Callable[[Round], object] = lambda done: None,
    played: Played | None = None,
) -> Played:
    """Play a game whose groups live at these places, by turns. watch: told each round when it is over.

    played: go on from there, with the groups that there are: after `actors.restore`, or for more rounds.
    Rounds are the same for one seed, whatever the places are. Raises LightworkError if nobody gives a number,
    HostLostError if a place is lost.
    """
    if played is None:
        played = Played(
            [
                actors.create(Group, f"group {i}", block, on=places[i % len(places)], key=f"group {i}")
                for i, block in enumerate(game.blocks(len(places)))
            ]
        )
    try:
        while len(played.rounds) < game.rounds:
            done = await _round(game, actors, played)
            played.rounds.append(done)
            watch(done)
            if not done.tally.count:
                raise LightworkError(
                    f"round {done.number}: none of {done.players:,} players gave a number",
                    expected=f"answers from 0 to {HIGHEST // UNIT}",
                    fix="another model, or other rules",
                )
    finally:
        for over in [group.leave() for group in played.groups]:
            with suppress(LightworkError):  # what went wrong before is raised
                await over
    return played


async def _round(game: NumberGame, actors: Actors, played: Played) -> Round:
    kernel, groups, rounds = actors.kernel, played.groups, played.rounds
    said = Said(len(rounds) + 1, game.ratio, rounds[-1].winning if rounds else None)

    async def ask(i: int) -> Tally:
        start_s = kernel.now()
        played.messages += 1
        tally: Tally = await groups[i].ask("answer", said)
        played.messages += 1
        if kernel.trace is not None:
            args = {"count": tally.count, "place": actors.places[groups[i].place].name}
            name = f"round {said.round}"
            kernel.trace.add(Span(f"group {i}", "round", name, start_s, kernel.now(), args=args))
        return tally

    begun_s = kernel.now()
    tallies = await kernel.gather(*(kernel.spawn(ask(i)) for i in range(len(groups))))
    total = Tally(sum(t.sum for t in tallies), sum(t.count for t in tallies))
    done = Round(said.round, game.population.total, total, game.ratio)
    if kernel.trace is not None:
        name = f"round {done.number}"
        kernel.trace.add(Span("game", "round", name, begun_s, kernel.now(), args=done.record()))
    return done


def parse_ratio(text: Any) -> Fraction:
    """Of a text like 2/3 or 0.67. Raises SpecError."""
    said = str(text)
    if not re.fullmatch(r"\d{1,6}(/0*[1-9]\d{0,5})?|\d?\.\d{1,9}", said):
        raise SpecError(f"ratio is {text!r:.40}", expected="a fraction", fix="ratio: 2/3")
    return Fraction(said)


def _within(name: str, value: Any, low: float, high: float, *, whole: bool = False) -> None:
    kinds = int if whole else int | float | Fraction
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        of = "a whole number, " * whole
        raise RangeError(f"{name} is {value!r:.40}", expected=f"{of}{low:g} to {high:g}")
