"""What it takes to watch populations: real ones while they run, and a simulated one in its trace."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from lightwork.claims._pages import Answer, Page, paged
from lightwork.errors import LightworkError

MANY = 100_000
ANSWERS = 15
PAIRS = 5
WATCHED, ROUNDS = 50_000, 12
MOMENTS = 20


@dataclass(frozen=True, slots=True)
class Watched:
    """overviews: each of a look of its own. peak_bytes: of the server."""

    overviews: list[Answer]
    others: list[Answer]
    agents: int
    peak_bytes: int

    def median_s(self) -> float:
        return median(answer.seconds for answer in self.overviews)

    def worst_s(self) -> float:
        return max(answer.seconds for answer in [*self.overviews, *self.others])

    def most_bytes(self) -> int:
        return max(answer.num_bytes for answer in [*self.overviews, *self.others])


@contextmanager
def _game(said: Mapping[str, Any]) -> Iterator[Path]:
    """A file of it, in a folder that goes with the block."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "game.json"
        file.write_text(json.dumps({"game": "numbers", **said}), encoding="utf-8")
        yield file


def _run(words: list[str]) -> str:
    """What a verb prints."""
    done = subprocess.run([sys.executable, "-m", "lightwork", *words], capture_output=True, text=True)
    if done.returncode:
        raise LightworkError(f"lightwork {' '.join(words)} failed: {done.stderr.strip()[-300:]}")
    return done.stdout


def _others(page: Page, at: str = "") -> list[Answer]:
    """The list of agents from its beginning, from further on and by state, and one of them."""
    first = page.ask(f"/ui/agents/list?limit=200{at}")
    agents = first.told["agents"]
    next_ = page.ask(f"/ui/agents/list?limit=200&after={agents[len(agents) // 2]['id']}{at}")
    busy = page.ask(f"/ui/agents/list?limit=200&state=busy{at}")
    killed = page.ask(f"/ui/agents/list?limit=200&state=killed{at}")
    one = page.ask(f"/ui/agents/one?id={agents[-1]['id']}{at}")
    return [first, next_, busy, killed, one]


@cache
def running(place: str, seed: int, population: str) -> Watched:
    """Players who think for a second, asked while they play. population: as a game file has it, in JSON."""
    people = json.loads(population)
    said = {"rounds": 10_000, "thinks_s": 1.0, "population": people}
    overviews: list[Answer] = []
    with (
        _game(said) as file,
        paged("simulate", str(file), "--place", place, "--page", "0", "--seed", str(seed)) as page,
    ):
        while not overviews or overviews[-1].told["total"] < people["total_num"]:  # until all are there
            overviews = [page.ask("/ui/agents")]
        while len(overviews) < ANSWERS:
            answer = page.ask("/ui/agents")
            if answer.told["now_s"] != overviews[-1].told["now_s"]:
                overviews.append(answer)
        others = _others(page)
        return Watched(overviews, others, overviews[-1].told["total"], page.peak_bytes())


@cache
def replayed(seed: int, population: str) -> Watched:
    """The trace of one round of them on 4 simulated hosts, at moments of it."""
    said = {"rounds": 1, "thinks_s": 1.0, "population": json.loads(population)}
    with _game(said) as file:
        kept = file.parent / "kept"
        asked = ["simulate", str(file), "--place", "sim:4", "--trace", str(kept), "--seed", str(seed)]
        _run(asked)
        with paged("trace", str(kept), "--page") as page:
            overviews = [page.ask("/ui/agents")]
            end_s = overviews[0].told["now_s"]
            overviews += [page.ask(f"/ui/agents?at={end_s * i / MOMENTS}") for i in range(MOMENTS)]
            most = max(answer.told["total"] for answer in overviews)
            return Watched(overviews, _others(page, f"&at={end_s * 0.45}"), most, page.peak_bytes())


@cache
def costs(seed: int, population: str) -> list[float]:
    """CPU of a run of players who answer at once, with an open page, over that of one with none, in pairs."""
    said = {"rounds": ROUNDS, "thinks_s": 0.0, "population": json.loads(population)}
    ratios = []
    with _game(said) as file:
        words = ["simulate", str(file), "--seed", str(seed), "--json"]
        for _ in range(PAIRS):
            alone = _run(words)
            with paged(*words, "--page", "0") as page:
                page.read_feed("/ui/agents/feed")
                assert page.process.stdout is not None
                watched = page.process.stdout.read()
            ratios.append(json.loads(watched)["cpu_s"] / json.loads(alone)["cpu_s"])
    return ratios
