"""AgentScope at scale: a million agents in one run, and the same game on the paper's machines.

Real: the number game with players who think for a second each on the virtual clock, in a process of its own,
whose CPU time and memory are read at its end; a model of our own that plays at the level its persona says
(`_level_model`); and the page that watches populations (`_population_page`). Simulated: the design of the
reference, in which an answer that is awaited holds a thread; what its machines' GPUs need for that many
answers; and lightwork's own actors on as many hosts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import inf
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lightwork.agents.number_game import RULES, NumberGame
from lightwork.agents.number_models import THOUGHT
from lightwork.agents.number_players import EXTRACT, UNIT, Said, decimal
from lightwork.agents.personas import template
from lightwork.agents.profile_model import four_chars
from lightwork.agents.simulate import Report, simulate
from lightwork.claims import Lab, Measured, claim
from lightwork.claims._population_page import MANY, WATCHED, costs, replayed, running
from lightwork.claims._population_page import ROUNDS as WATCHED_ROUNDS
from lightwork.errors import LightworkError
from lightwork.runtime.effects import Sleep, Use
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.places.simulated import Simulated
from lightwork.runtime.resources import Fifo
from lightwork.serve.loads import Arrival
from lightwork.serve.plan import Plan
from lightwork.serve.simulate import simulate as simulate_serving

MILLION = 1_000_000
THINKS_S = 1.0
LEVELS: tuple[tuple[float, float], ...] = ((0, 0.1), (1, 0.4), (2, 0.3), (inf, 0.2))
"""(level, share) of the mixed population: few answer at random, most think one or two steps."""
CALL_S = 1.3e-3
"""CPU of one call of the reference (agentscope 0.1.6), measured: see peers of its entry."""
THREADS, SERVERS = 25_000, 256
"""The reference's threads that may wait at once, in all; its server processes, one for each of 256 cores."""
MACHINES, GPUS = 4, 32
MESSAGE_S, LATENCY_S, BYTES_PER_S = 5e-6, 1e-4, 1.25e9
"""Of our hosts: the bar of a call between two actors of a place, and a data centre's 10 Gbit/s."""
PLAYERS, ROUNDS, OF_ONE_LEVEL = 6000, 3, 200
"""In a fourth round about 4 wins, and one decimal, which is what models are told, is 1 % of it."""


def population(levels: tuple[tuple[float, float], ...], total: int) -> dict[str, Any]:
    categories = [
        {"category_name": f"level {level:g}", "percentage": share, "attributes": {"level": f"{level:g}"}}
        for level, share in levels
    ]
    return {"total_num": total, "distributions": [{"name": "levels", "categories": categories}]}


# -- real


@cache
def _a_million(seed: int) -> dict[str, Any]:
    """One round of a million players in a process of its own: its report."""
    said = {"game": "numbers", "rounds": 1, "thinks_s": THINKS_S, "population": population(LEVELS, MILLION)}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "game.json"
        file.write_text(json.dumps(said), encoding="utf-8")
        command = [sys.executable, "-m", "lightwork", "simulate", str(file), "--place", "sim:1", "--json"]
        done = subprocess.run([*command, "--seed", str(seed)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LightworkError(f"a million agents failed: {done.stderr.strip()[-300:]}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@claim(
    "agentscope",
    title="CPU of a million agents, made and asked once, each thinking for a second of virtual time",
    paper="a million agents in one run; our bar 15 s of one core",
    expect=15.0,
    within=0.0,
    bound="at most",
    mode="real",
    unit=" s",
)
def cpu_of_a_million_agents(lab: Lab) -> Measured:
    report = _a_million(lab.seed)
    answers = report["rounds"][0]["answers"]
    return Measured(report["cpu_s"], f"{answers:,} answers; {report['seconds']:.2f} s of virtual time")


@claim(
    "agentscope",
    title="memory of that process at its most",
    paper="- (our bar: 1 GB)",
    expect=1.0,
    within=0.0,
    bound="at most",
    mode="real",
    unit=" GB",
)
def memory_of_a_million_agents(lab: Lab) -> Measured:
    report = _a_million(lab.seed)
    return Measured(
        report["peak_bytes"] / 1e9, f"{report['peak_bytes'] / MILLION:.0f} bytes per agent, all in"
    )


@cache
def _played(levels: tuple[tuple[float, float], ...], total: int, seed: int) -> Report:
    """A game of players who ask the trained model, on its engine."""
    from lightwork.claims._level_model import folder

    game = NumberGame.of(
        {
            "rounds": ROUNDS,
            "rules": "",
            "players": str(folder()),
            "population": population(levels, total),
        }
    )
    return simulate(game, seed=seed)


def told(number: int | None) -> Fraction | None:
    """What players read of a number: one decimal."""
    return None if number is None else Fraction(decimal(number, 1)) * UNIT


def off(levels: tuple[tuple[float, float], ...], report: Report) -> list[float]:
    """By how much the mean of each round is off what levels make of what they were told, relatively."""
    ratio = float(report.rounds[0].ratio)
    factor = sum(share * ratio**level for level, share in levels)
    found = []
    before: int | None = None
    for done in report.rounds:
        winning = told(before)
        mean = 50.0 * UNIT if winning is None else float(winning) / ratio
        found.append(float(done.exact_mean or 0) / (mean * factor) - 1)
        before = done.winning
    return found


@claim(
    "agentscope",
    title="mixed levels played by a trained model: a round's mean off the closed form, worst of 3 rounds",
    paper="- (theory of level-k thinking; our bar 1 %)",
    expect=0.01,
    within=0.0,
    bound="at most",
    mode="real",
    unit="",
)
def a_trained_population_has_the_mean_of_theory(lab: Lab) -> Measured:
    report = _played(LEVELS, PLAYERS, lab.seed)
    errors = off(LEVELS, report)
    means = ", ".join(decimal(done.mean or 0, 2) for done in report.rounds)
    invalid = sum(PLAYERS - done.tally.count for done in report.rounds)
    shown = ", ".join(f"{error:+.2%}" for error in errors)
    return Measured(
        max(map(abs, errors)), f"{PLAYERS:,} players; means {means}; off {shown}; {invalid} invalid"
    )


@claim(
    "agentscope",
    title="players of one level, by a trained model: mean over the last one's, off ratio^k, worst of k to 2",
    paper="means contract by about ratio^k (theory of level-k thinking)",
    expect=0.05,
    within=0.0,
    bound="at most",
    mode="real",
    unit="",
)
def means_of_one_level_contract_by_a_power_of_the_ratio(lab: Lab) -> Measured:
    worst, notes = 0.0, []
    for level in (0, 1, 2):
        rounds = _played(((level, 1.0),), OF_ONE_LEVEL, lab.seed).rounds
        means = np.array([float(done.exact_mean or 0) for done in rounds])
        ratios = means[1:] / means[:-1]
        expected = float(rounds[0].ratio) ** level
        worst = max(worst, float(np.abs(ratios / expected - 1).max()))
        notes.append(f"k={level}: {', '.join(f'{r:.3f}' for r in ratios)} ({expected:.3f})")
    lowest = _played(((inf, 1.0),), OF_ONE_LEVEL, lab.seed).rounds[0]
    return Measured(worst, f"{'; '.join(notes)}; k=inf: mean {decimal(lowest.mean or 0, 2)}")


# -- simulated: the reference's design


def blocked_s(agents: int, threads: int, thinks_s: float) -> float:
    """A round at one server process of the reference: a thread for each answer that is awaited, and one core
    for all of its Python."""
    game = NumberGame.of({"rounds": 1, "thinks_s": thinks_s, "population": population(LEVELS, agents)})
    server = Simulated(threads=threads + 1, message_s=CALL_S)  # one is its environment's
    return simulate(game, "sim:1", host=server).seconds


@claim(
    "agentscope",
    title="a million one-second agents on 4 machines with 25,000 threads, in the reference's design",
    paper="40 s",
    expect=40.0,
    within=0.3,
    unit=" s",
)
def a_million_blocked_calls(lab: Lab) -> Measured:
    seconds = blocked_s(MILLION // SERVERS, THREADS // SERVERS, THINKS_S)
    return Measured(
        seconds, f"one of {SERVERS} equal servers: {THREADS // SERVERS} threads, {CALL_S:g} s a call"
    )


@claim(
    "agentscope",
    title="a round of 100 agents that sleep for a second on 4 servers, called by one environment",
    paper="1.130, 1.125, 1.129 s (README log)",
    expect=1.13,
    within=0.3,
    unit=" s",
)
def a_round_of_the_readme(lab: Lab) -> float:
    kernel, caller = Kernel(), Fifo("caller")

    async def sleeper() -> None:
        await Sleep(1.0)

    async def environment() -> None:
        calls = []
        for _ in range(100):
            await Use(caller, CALL_S)
            calls.append(kernel.spawn(sleeper()))
        await kernel.gather(*calls)

    kernel.run(environment())
    return kernel.now()


@dataclass(frozen=True, slots=True)
class _TwoCalls:
    """Players of one GPU: each asks for a thought, then for the number in it."""

    players: int
    first: tuple[int, int]
    second: tuple[int, int]

    def arrivals(self, rng: np.random.Generator) -> list[Arrival]:
        thoughts = [Arrival(0.0, *self.first) for _ in range(self.players)]
        return thoughts + [Arrival(0.0, *self.second, after=i) for i in range(self.players)]


@claim(
    "agentscope",
    title="64,000 agents ask Llama-3-8B on 4 machines of 8 A100, two calls each",
    paper="about 30 s without initialisation",
    expect=30.0,
    within=0.3,
    unit=" s",
)
def answers_of_64_000_agents(lab: Lab) -> Measured:
    said = Said(2, Fraction(2, 3), 22 * UNIT)
    asked = template({"level": 2}).text + RULES.replace("{ratio}", "2/3") + said.text()
    thought = THOUGHT.format(ratio="2/3", mean="33.0", level=2, number="14.7")
    first, second = (four_chars(asked), four_chars(thought)), (four_chars(EXTRACT + thought), 2)
    load = _TwoCalls(64_000 // GPUS, first, second)
    run = simulate_serving(
        Plan(model="shape:llama-3-8b", on="sim:a100"), load, seed=lab.seed, keep_spans=False
    )
    note = f"one of {GPUS} GPUs; {load.first} and {load.second} tokens in and out, as our own texts have"
    return Measured(run.summary.duration_s, note)


@claim(
    "agentscope",
    title="a million one-second agents on 4 simulated hosts, by lightwork's actors",
    paper="40 s; our bar a tenth of it",
    expect=4.0,
    within=0.0,
    bound="at most",
    unit=" s",
)
def a_million_light_actors(lab: Lab) -> Measured:
    game = NumberGame.of({"rounds": 1, "thinks_s": THINKS_S, "population": population(LEVELS, MILLION)})
    host = Simulated(message_s=MESSAGE_S, latency_s=LATENCY_S, bytes_per_s=BYTES_PER_S)
    report = simulate(game, f"sim:{MACHINES}", seed=lab.seed, host=host)
    return Measured(report.seconds, f"{MESSAGE_S * 1e6:g} us of one core of each host to take up a message")


# -- its page


def _levels(total: int) -> str:
    return json.dumps(population(LEVELS, total))


@claim(
    "agentscope",
    title="the page of 100,000 agents that play, here or on two processes: median answer, the slower of both",
    paper="its web monitor; our bar 0.3 s",
    expect=0.3,
    within=0.0,
    bound="at most",
    mode="real",
    unit=" s",
)
def answer_of_a_population_that_plays(lab: Lab) -> Measured:
    seen = {place: running(place, lab.seed, _levels(MANY)) for place in ("local", "process:2")}
    told = [f"{place} {each.median_s():.3f}, at worst {each.worst_s():.2f}" for place, each in seen.items()]
    looks = sum(len(each.overviews) for each in seen.values())
    return Measured(max(each.median_s() for each in seen.values()), f"{'; '.join(told)}; {looks} looks")


@claim(
    "agentscope",
    title="bytes of the longest answer about them",
    paper="- (our bar: 200 KB)",
    expect=200.0,
    within=0.0,
    bound="at most",
    mode="real",
    unit=" KB",
)
def bytes_of_an_answer(lab: Lab) -> Measured:
    seen = running("process:2", lab.seed, _levels(MANY))
    overview = max(answer.num_bytes for answer in seen.overviews)
    note = f"overview {overview / 1e3:.1f} KB; lists are pages of 200 agents"
    return Measured(seen.most_bytes() / 1e3, note)


@claim(
    "agentscope",
    title="CPU of a run that an open page watches, over that of one without",
    paper="- (our bar: 5 % more)",
    expect=1.05,
    within=0.0,
    bound="at most",
    mode="real",
    unit="x",
)
def cost_of_being_watched(lab: Lab) -> Measured:
    ratios = costs(lab.seed, _levels(WATCHED))
    shown = ", ".join(f"{ratio:.3f}" for ratio in sorted(ratios))
    return Measured(
        median(ratios), f"{WATCHED:,} players who answer at once, {WATCHED_ROUNDS} rounds; pairs {shown}"
    )


@claim(
    "agentscope",
    title="a moment of a simulated run of a million agents on 4 hosts, of its trace: slowest answer",
    paper="- (our bar: 0.3 s)",
    expect=0.3,
    within=0.0,
    bound="at most",
    mode="real",
    unit=" s",
)
def answer_of_a_replayed_population(lab: Lab) -> Measured:
    seen = replayed(lab.seed, _levels(MILLION))
    note = f"{seen.agents:,} agents; median of {len(seen.overviews)} moments {seen.median_s():.3f} s"
    return Measured(seen.worst_s(), note)


@claim(
    "agentscope",
    title="memory of the server of that page at its most",
    paper="- (our bar: 200 MB)",
    expect=200.0,
    within=0.0,
    bound="at most",
    mode="real",
    unit=" MB",
)
def memory_of_a_replayed_population(lab: Lab) -> Measured:
    seen = replayed(lab.seed, _levels(MILLION))
    return Measured(seen.peak_bytes / 1e6, f"longest answer {seen.most_bytes() / 1e3:.1f} KB")
