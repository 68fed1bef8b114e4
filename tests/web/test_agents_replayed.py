"""A population in a saved trace, by HTTP: at any moment, what the run itself was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient
from watching import do, feed, listed

from lightwork.agents.number_game import NumberGame
from lightwork.agents.simulate import about, simulate
from lightwork.cli import main
from lightwork.errors import SpecError
from lightwork.runtime.perfetto import write_chrome_trace
from lightwork.runtime.places.simulated import Simulated
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.run_folder import EventsFile
from lightwork.web.routes import saved_app

NUM, THREADS = 40, 6
LEVELS = [
    {"name": "levels", "categories": [{"category_name": "a", "percentage": 1, "attributes": {"level": 1}}]}
]
GAME = NumberGame.of(
    {"rounds": 2, "thinks_s": 1.0, "population": {"total_num": NUM, "distributions": LEVELS}}
)


def deeds() -> list[Span]:
    whom = [
        ("kill", {"agent": "1.512"}, 0.25),
        ("pause", {"host": "sim 1"}, 0.5),
        ("resume", {"host": "sim 1"}, 1.5),
    ]
    return [Span("x", "did", what, at_s, at_s, args={**args, "by": "page"}) for what, args, at_s in whom]


@pytest.fixture(scope="module")
def trace() -> Trace:
    """Each host can do so many things at once, so players are busy at different times."""
    made = Trace("simulated: sim:2")
    simulate(GAME, "sim:2", host=Simulated(threads=THREADS), trace=made)
    return made


@pytest.fixture(scope="module", params=["folder", "file"])
def page(
    request: pytest.FixtureRequest, trace: Trace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    place = tmp_path_factory.mktemp("saved") / f"out.{request.param}"
    spans = sorted([*trace.spans, *deeds()], key=lambda span: span.end_s)
    if request.param == "folder":
        events = EventsFile(place, trace.label, {"seed": 0, "about": about(GAME, "sim:2")})
        for span in spans:
            events.on(span)
        events.close()
    else:
        place = place.with_suffix(".json")
        whole = Trace(trace.label)
        whole.about, whole.spans = trace.about, spans
        write_chrome_trace(place, [whole])
    with TestClient(saved_app(place), base_url="http://localhost") as client:
        yield client


def test_a_saved_run_of_agents_says_so(page: httpx.Client) -> None:
    source = page.get("/ui/source").json()
    assert (source["live"], source["agents"]) == (False, True)


@pytest.mark.parametrize("at_s", [0.1, 0.9, 2.5, 3.3])
def test_a_moment_is_what_the_run_was_then(page: httpx.Client, trace: Trace, at_s: float) -> None:
    told = page.get("/ui/agents", params={"at": at_s}).json()
    goes_on = [span for span in trace.spans if span.kind == "call" and span.start_s <= at_s < span.end_s]
    busy = [span for span in goes_on if not (span.rank == "sim 0" and span.peer == "512" and at_s >= 0.25)]
    assert told["now_s"] == at_s
    assert told["total"] == NUM + 2 - (at_s >= 0.25)
    by_host = {host["place"]: host for host in told["hosts"]}
    assert [*by_host] == ["sim 0", "sim 1"]
    for name, host in by_host.items():
        assert host["busy"] == sum(span.rank == name for span in busy)
        assert host["messages"] == sum(
            span.kind == "call" and span.rank == name and span.start_s <= at_s for span in trace.spans
        )
    assert sum(told["busy_for"]["counts"]) == len(busy)
    for low, high, count in zip(
        told["busy_for"]["edges_s"], told["busy_for"]["edges_s"][1:], told["busy_for"]["counts"], strict=False
    ):
        assert count == sum(low <= at_s - span.start_s < high for span in busy)
    first = min(busy, key=lambda span: span.start_s)
    assert told["slowest"][0]["for_s"] == pytest.approx(at_s - first.start_s)
    assert {kind["class"] for kind in told["kinds"]} == {"LevelPlayer", "Group"}
    assert by_host["sim 1"]["paused"] == (by_host["sim 1"]["busy"] + by_host["sim 1"]["idle"]) * (
        0.5 <= at_s < 1.5
    )


def test_its_end_is_told_without_a_moment(page: httpx.Client, trace: Trace) -> None:
    told = page.get("/ui/agents").json()
    assert told["now_s"] == max(span.end_s for span in trace.spans)
    assert (told["ended"], told["steerable"]) == (True, False)
    assert [(done["number"], done["answers"]) for done in told["rounds"]] == [(1, NUM), (2, NUM)]
    assert sum(host["busy"] for host in told["hosts"]) == 0


def test_a_round_that_goes_on_has_no_end(page: httpx.Client) -> None:
    (first,) = page.get("/ui/agents?at=0.5").json()["rounds"]
    assert first == {"number": 1, "start_s": 0.0, "end_s": None}


def test_pages_are_the_whole_list_at_a_moment(page: httpx.Client) -> None:
    every = listed(page, limit=7, at=0.6)
    assert len({agent["id"] for agent in every}) == len(every) == NUM + 2
    by_state = {
        state: listed(page, limit=7, at=0.6, state=state) for state in ("idle", "busy", "paused", "killed")
    }
    assert sum(map(len, by_state.values())) == NUM + 2
    assert [agent["id"] for agent in by_state["killed"]] == ["1.512"]
    assert {agent["host"] for agent in by_state["paused"]} == {"sim 1"}
    assert {agent["method"] for agent in by_state["busy"]} == {"answer", "ask"}
    assert {agent["host"] for agent in listed(page, host="sim 1")} == {"sim 1"}


def test_an_agent_has_its_calls_and_what_was_done_to_it(page: httpx.Client, trace: Trace) -> None:
    told = page.get("/ui/agents/one?id=2.512").json()
    calls = [
        span for span in trace.spans if span.rank == "sim 1" and span.peer == "512" and span.kind == "call"
    ]
    assert [event["what"] for event in told["events"] if event["what"] == "answer"] == ["answer"] * len(calls)
    killed = page.get("/ui/agents/one?id=1.512").json()
    assert killed["state"] == "killed"
    assert "kill" in [event["what"] for event in killed["events"]]
    assert page.get("/ui/agents/one?id=1.512&at=0.2").json()["state"] == "busy"


@pytest.mark.parametrize(
    "path", ["/ui/agents/one?id=1.9999999", "/ui/agents/list?host=nowhere", "/ui/agents/one?id=7.1"]
)
def test_who_is_not_there_is_not_told_of(page: httpx.Client, path: str) -> None:
    reply = page.get(path)
    assert reply.status_code == 404
    assert set(reply.json()) == {"error"}


def test_a_saved_run_is_not_changed(page: httpx.Client) -> None:
    assert do(page, "kill", agent="1.256").status_code == 409
    elsewhere = page.post("/ui/agents/do", json={}, headers={"origin": "http://elsewhere.example"})
    assert elsewhere.status_code == 403


def test_its_feed_is_what_happened_and_ends(page: httpx.Client) -> None:
    events = feed(page, lambda events: False)
    assert [name for _, name, _ in events] == ["did", "did", "did", "round", "round", "end"] or [
        name for _, name, _ in events
    ] == ["did", "did", "round", "did", "round", "end"]
    assert [number for number, _, _ in events] == [1, 2, 3, 4, 5, 6]
    assert feed(page, lambda events: False, params={"last": 4}) == events[4:]


def test_a_kept_simulation_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    game = tmp_path / "game.json"
    said: dict[str, Any] = {"game": "numbers", "rounds": 1, "thinks_s": 1}
    game.write_text(json.dumps(said | {"population": {"total_num": 10, "distributions": LEVELS}}))
    kept = tmp_path / "kept"
    assert main(["simulate", str(game), "--place", "sim:2", "--trace", str(kept)]) == 0
    with TestClient(saved_app(kept), base_url="http://localhost") as page:
        assert page.get("/ui/agents?at=0.5").json()["total"] == 12
    capsys.readouterr()
    assert main(["trace", str(kept)]) == 0
    assert "simulated: sim:2" in capsys.readouterr().out
    assert main(["simulate", str(game), "--place", "sim:2", "--trace", str(kept)]) != 0
    assert "holds files already" in capsys.readouterr().err


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text(
        '{"label": "x", "seed": 0, "about": {"places": ["here"]}}\n{"span": [1]}\n'
    )
    with pytest.raises(SpecError, match="cannot be understood"):
        saved_app(tmp_path)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(SpecError, match="not a Chrome trace"):
        saved_app(tmp_path / "x.json")
