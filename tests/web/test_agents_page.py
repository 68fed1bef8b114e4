"""The view of a population in a real browser: what it shows of a real run, and what is done from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

import httpx
import pytest
from browsing import Page, axe_finds, clean_page, started
from relay import Relay

from lightwork.cli import main
from lightwork.runtime import Kernel, Sleep, Trace, WallClock
from lightwork.runtime.actors import Actors
from lightwork.runtime.trace import Span
from lightwork.web.monitor import Monitor
from lightwork.web.ring import Ring

pytestmark = pytest.mark.multiproc
AGENTS = 120
LEVELS = {
    "name": "thinking",
    "categories": [{"category_name": "one step", "percentage": 100, "attributes": {"level": 1}}],
}
GAME = {
    "game": "numbers",
    "rounds": 10_000,
    "thinks_s": 0.1,
    "population": {"total_num": AGENTS, "distributions": [LEVELS]},
}
MARKUP = '<img src=x onerror="document.title = 1">'
IDLE, BUSY, PAUSED = 4, 5, 6
"""Columns of the table of hosts, from 1."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A game that two processes play until the tests are over."""
    game = tmp_path_factory.mktemp("games") / "game.json"
    game.write_text(json.dumps(GAME), encoding="utf-8")
    with started("simulate", str(game), "--place", "process:2", "--page") as (_, address):
        yield address


def opened(page: Page, url: str) -> None:
    page.goto(f"{url}/ui")
    page.wait_for_selector("#agents-state:has-text('connected')")
    page.wait_for_selector("#agents-listed tbody tr")


def host(name: str, column: int, says: str) -> str:
    """A cell of the table of hosts that says just this."""
    return f"#agents-hosts tr:has-text('{name}') td:nth-child({column}):text-is('{says}')"


def told(url: str, path: str, **asked: str) -> Any:
    return httpx.get(f"{url}/ui/agents{path}", params=asked, timeout=60).raise_for_status().json()


def do(url: str, what: str, **whom: str) -> None:
    httpx.post(f"{url}/ui/agents/do", json={"do": what, **whom}, timeout=60).raise_for_status()


def texts(page: Page, selector: str) -> list[str]:
    return page.eval_on_selector_all(selector, "all => all.map(e => e.textContent)")


def test_a_population_that_runs_is_shown(page: Page, url: str):
    opened(page, url)
    stats = told(url, "")
    assert texts(page, "#agents-hosts td:first-child") == ["process 0", "process 1"]
    page.wait_for_selector(f"#agents-figures:has-text('{stats['total']} agents')")
    assert {"LevelPlayer", "Group"} == set(texts(page, "#agents-kinds td:first-child"))
    page.click("#agents-more summary")
    page.wait_for_function(
        "n => document.querySelectorAll('#agents-round-table tbody tr').length > n",
        arg=len(stats["rounds"]) if len(stats["rounds"]) < 200 else 199,
    )
    page.wait_for_selector("#agents-bins .bins")
    page.wait_for_selector("#agents-slowest button")
    assert page.evaluate("shown.runs[0].label") == "real: process:2"


def test_a_host_is_paused_and_goes_on(page: Page, url: str):
    opened(page, url)
    page.click("[aria-label='pause process 1']")
    all_of_it = str(AGENTS // 2 + 1)
    page.wait_for_selector(host("process 1", PAUSED, all_of_it))
    page.wait_for_selector("#agents-log li:first-child:has-text('paused process 1, from a page')")
    page.wait_for_selector(host("process 0", BUSY, "0"))  # the round waits for those that are paused
    before = told(url, "")["rounds"][-1]["number"]
    page.click("[aria-label='resume process 1']")
    page.wait_for_selector(host("process 1", PAUSED, "0"))
    page.wait_for_selector("#agents-log li:first-child:has-text('resumed process 1')")
    page.click("#agents-more summary")
    page.wait_for_selector(f"#agents-round-table td:first-child:text-is('{before + 2}')")


def test_an_agent_is_killed_once_it_is_sure(page: Page, url: str):
    opened(page, url)
    page.select_option("#agents-host", "process 1")
    page.wait_for_selector("#agents-listed tr:first-child td:has-text('process 1')")
    page.click("#agents-listed tbody tr:nth-child(3)")
    page.wait_for_selector("#agents-one h3:has-text('Memory')")
    victim = page.inner_text("#agents-one-title").removeprefix("Agent ")
    assert "Rule(level=1" in page.inner_text("#agents-one-body")
    kill = f"[aria-label='kill {victim}']"
    page.click(kill)
    assert f"Kill {victim}?" in page.inner_text("#agents-sure")
    page.keyboard.press("Escape")
    page.click(kill)
    page.keyboard.press("Enter")  # Keep has the focus
    page.wait_for_selector("#agents-sure", state="hidden")
    assert told(url, "/one", id=victim)["state"] != "killed"
    page.click(kill)
    page.click("#agents-sure button:text-is('Kill')")
    page.wait_for_selector(f"#agents-log li:has-text('killed {victim}')")
    page.wait_for_selector("#agents-one .wrong, #agents-one td:text-is('killed')")
    page.select_option("#agents-is", "killed")
    page.wait_for_selector("#agents-listed td:text-is('killed')")
    assert texts(page, "#agents-listed td:first-child") == [victim]


def test_all_agents_by_pages(page: Page, url: str):
    opened(page, url)
    first = texts(page, "#agents-listed td:first-child")
    found = [*first]
    while page.is_enabled("#agents-next"):
        before = page.inner_text("#agents-listed-words")
        page.click("#agents-next")
        page.wait_for_function(
            "was => !['looking', was].includes($('agents-listed-words').innerText)", arg=before
        )
        found += texts(page, "#agents-listed td:first-child")
    assert len(found) == len(set(found))
    assert AGENTS <= len(found) <= AGENTS + 2  # with the groups, less who was killed
    page.click("#agents-before")
    page.click("#agents-before")
    page.wait_for_function("id => document.querySelector('#agents-listed td').innerText === id", arg=first[0])


def test_the_keyboard_reaches_every_agent(page: Page, url: str):
    opened(page, url)
    page.keyboard.press("a")
    first = page.evaluate("document.activeElement.dataset.id")
    page.keyboard.press("ArrowDown")
    second = page.evaluate("document.activeElement.dataset.id")
    assert second not in (None, first)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#agents-one-title:text-is('Agent {second}')")
    page.wait_for_function("document.activeElement === $('agents-one-title')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#agents-one-title:text-is('Agent')")
    assert page.evaluate("document.activeElement.dataset.id") == second
    page.keyboard.press("?")
    assert "go to the agents" in page.inner_text("#help-keys")
    page.keyboard.press("Escape")
    page.fill("#agents-find", first)
    page.press("#agents-find", "Enter")
    page.wait_for_selector(f"#agents-one-title:text-is('Agent {first}')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_axe_finds_nothing_and_all_fits(page: Page, url: str, scheme: str, width: int):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    do(url, "pause", host="process 0")
    do(url, "resume", host="process 0")
    opened(page, url)
    page.click("#agents-more summary")
    page.click("#agents-listed tbody tr:first-child")
    page.wait_for_selector("#agents-one h3")
    page.wait_for_selector("#agents-log li")
    assert axe_finds(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_the_policy_forbids_nothing_that_the_view_does(browser: Any, url: str):
    said: list[str] = []
    context = browser.new_context()
    strict = context.new_page()
    strict.on("console", lambda message: said.append(message.text))
    strict.on("pageerror", lambda error: said.append(str(error)))
    opened(strict, url)
    strict.click("#agents-listed tbody tr:first-child")
    strict.wait_for_selector("#agents-one h3")
    strict.wait_for_selector("#agents-bins .bin", timeout=60_000)
    context.close()
    assert said == []


# -- a run that was saved


def test_a_saved_run_is_replayed(browser: Any, tmp_path: Path):
    """Two rounds of a second each on simulated hosts: at 1.5 s all are busy, at the end nobody is."""
    game = tmp_path / "game.json"
    game.write_text(json.dumps({**GAME, "rounds": 2, "thinks_s": 1.0}), encoding="utf-8")
    kept = tmp_path / "kept"
    assert main(["simulate", str(game), "--place", "sim:2", "--trace", str(kept), "--json"]) == 0
    with started("trace", str(kept), "--page") as (_, address), clean_page(browser, address) as page:
        page.goto(f"{address}/ui")
        page.wait_for_selector("#agents-state:has-text('a saved run')")
        page.wait_for_selector(host("sim 1", BUSY, "0"))
        page.wait_for_selector("#agents-listed tbody tr")
        assert page.query_selector_all("[data-do]:visible") == []
        assert page.is_hidden("#timeline")
        assert float(page.get_attribute("#agents-at", "max")) == pytest.approx(2.0)
        page.fill("#agents-at", "1.5")
        for name in ("sim 0", "sim 1"):
            page.wait_for_selector(host(name, BUSY, str(AGENTS // 2 + 1)))
        page.wait_for_selector("#agents-slowest td:text-is('500 ms')")
        page.wait_for_selector("#agents-listed td:text-is('500 ms')")
        page.click("#agents-listed tbody tr:nth-child(2)")
        page.wait_for_selector("#agents-one td:has-text('answer, for 500 ms')")
        page.click(".slider button")
        page.wait_for_selector(host("sim 1", BUSY, "0"))
        page.wait_for_selector(".slider button:text-is('Play')")
        assert axe_finds(page) == []


# -- a population of this process


class Person:
    def __init__(self, name: str) -> None:
        self.name = name


class Watched(NamedTuple):
    """over: set it, and the run ends."""

    url: str
    over: Event


@contextmanager
def watched(
    name: str, cls: type, args: Sequence[Any], *, keep: int = 2048, rounds: int = 0
) -> Iterator[Watched]:
    """An actor of a class for each of args, with a page. name: of the run. keep: events that it keeps.
    rounds: that are over."""
    trace = Trace(name, keep=0, calls=False)
    monitor = Monitor(name, trace)
    monitor.ring = Ring(keep)
    begun, over = Event(), Event()

    async def main() -> None:
        for i in range(rounds):
            args = {"round": i, "answers": 100_000, "invalid": 0, "mean": "27.777778", "winning": "18.518518"}
            trace.add(Span("group 0", "round", f"round {i}", i / 100, (i + 1) / 100))
            trace.add(Span("game", "round", f"round {i}", i / 100, (i + 1) / 100, args=args))
        begun.set()
        while not over.is_set():
            await Sleep(0.02)

    def run() -> None:
        with Actors(Kernel(WallClock(), trace=trace)) as actors:
            for arg in args:
                actors.create(cls, arg)
            monitor.perform(actors, main())

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        assert begun.wait(60)
        yield Watched(monitor.url, over)
    finally:
        over.set()
        thread.join(60)


def test_names_with_markup_are_text(browser: Any):
    cls = type(MARKUP, (Person,), {})
    with watched(MARKUP, cls, [MARKUP]) as run, clean_page(browser, run.url) as page:
        opened(page, run.url)
        assert page.title() == f"{MARKUP} · lightwork"
        page.click("#agents-listed tbody tr")
        page.wait_for_selector("#agents-one pre")
        for where in ("#agents-figures", "#agents-kinds", "#agents-listed", "#agents-one"):
            assert MARKUP in page.text_content(where), where
        assert page.query_selector_all("img") == []
        assert page.title() == f"{MARKUP} · lightwork", "and nothing of it ran"


def test_opening_the_page_takes_less_than_200_kb(browser: Any):
    """Of its files and of all that it is told of a long run, until everything is there."""
    with watched("long", Person, [str(i) for i in range(300)], rounds=3000) as run:
        relay = Relay(run.url)
        try:
            with clean_page(browser, relay.url) as page:
                opened(page, relay.url)
                page.wait_for_selector("#claims details")
                page.wait_for_function("shown.runs.length && shown.runs[0].spans.length >= 300")
                assert 50_000 < relay.num_bytes < 200_000
        finally:
            relay.close()


def test_what_a_page_missed_comes_when_it_is_back(browser: Any):
    """Its line is cut: then all of it comes, or, if there was too much, a gap with its numbers."""
    forgives = "Failed to load resource: net::ERR_"
    with watched("cut", Person, ["a", "b"], keep=40) as run:
        relay = Relay(run.url)
        try:
            with clean_page(browser, relay.url, forgives=forgives) as page:
                opened(page, relay.url)
                agent = texts(page, "#agents-listed td:first-child")[0]
                relay.cut()
                page.wait_for_selector("#agents-state.lost")
                do(run.url, "pause", agent=agent)
                do(run.url, "resume", agent=agent)
                relay.mend()
                page.wait_for_selector("#agents-state:has-text('connected')")
                page.wait_for_selector("#agents-log li:nth-child(2)")
                heard = [re.sub(".* m?s ", "", line) for line in texts(page, "#agents-log li")]
                assert heard == [f"{done} {agent}, from a page" for done in ("resumed", "paused")]
                relay.cut()
                page.wait_for_selector("#agents-state.lost")
                for _ in range(30):
                    do(run.url, "pause", agent=agent)
                    do(run.url, "resume", agent=agent)
                relay.mend()
                gap = page.wait_for_selector("#agents-log li.gap").inner_text()
                numbers = re.search(r"events (\d+) to (\d+)", gap)
                assert numbers is not None
                lost = int(numbers[2]) - int(numbers[1]) + 1
                page.wait_for_function("n => $('agents-log').childElementCount >= n", arg=3 + 60 - lost)
        finally:
            relay.close()


def test_a_run_that_is_over_can_be_seen_but_not_steered(browser: Any):
    with watched("over", Person, ["a"]) as run, clean_page(browser, run.url) as page:
        opened(page, run.url)
        assert page.is_visible("[aria-label='kill here']")
        run.over.set()
        page.wait_for_selector("#agents-state:has-text('the run has ended')")
        assert page.query_selector_all("[data-do]:visible") == []
        assert texts(page, "#agents-hosts td:first-child") == ["here"]
