"""A population that runs, watched and steered by HTTP: on this process, on two, and on a virtual clock."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.testclient import TestClient
from watching import Thinker, do, feed, listed, of_thinkers, simulating, until

from lightwork.errors import DeadlockError
from lightwork.runtime import Kernel, Trace
from lightwork.runtime.actors import Actors
from lightwork.runtime.places.simulated import Simulated
from lightwork.runtime.watch import LONGEST
from lightwork.web.monitor import Monitor
from lightwork.web.ring import Ring
from lightwork.web.routes import saved_app

NUM = 12
LEVELS = [
    {"name": "levels", "categories": [{"category_name": "a", "percentage": 1, "attributes": {"level": 1}}]}
]


@pytest.fixture
def game(tmp_path: Path) -> Path:
    """Of 300 players, that nobody waits for the end of."""
    said = {"game": "numbers", "rounds": 10_000, "thinks_s": 0.05}
    file = tmp_path / "game.json"
    file.write_text(json.dumps(said | {"population": {"total_num": 300, "distributions": LEVELS}}))
    return file


def number_of(overview: dict[str, Any]) -> int:
    return overview["rounds"][-1]["number"] if overview["rounds"] else 0


# -- here


def test_what_is_told_of_a_population() -> None:
    def ask(client: httpx.Client, refs: list[Any]) -> Any:
        told = until(client, lambda told: told["total"] == NUM)
        return told, listed(client, limit=5), client.get("/ui/source").json()

    (told, agents, source), _ = of_thinkers(NUM, ask)
    assert source == {"live": True, "name": "thinkers", "agents": True}
    assert told["label"] == "real: local"
    assert told["kinds"] == [{"class": "Thinker", "count": NUM}]
    assert (told["steerable"], told["ended"]) == (True, False)
    (host,) = told["hosts"]
    assert (host["place"], host["idle"], host["busy"], host["lost"]) == ("here", NUM, 0, None)
    assert len(told["busy_for"]["edges_s"]) == len(told["busy_for"]["counts"]) + 1
    assert [agent["id"] for agent in agents] == [f"0.{i << 8}" for i in range(NUM)]
    assert {agent["state"] for agent in agents} == {"idle"}


def test_who_is_busy_longest_is_told() -> None:
    def ask(client: httpx.Client, refs: list[Any]) -> Any:
        kernel = refs[0]._desk.kernel
        kernel.post(lambda: [ref.think(60.0) for ref in refs[3:]])
        return until(client, lambda told: told["hosts"][0]["busy"] == NUM - 3), listed(client, state="busy")

    (told, busy), _ = of_thinkers(NUM, ask)
    assert [each["id"] for each in told["slowest"]] == [f"0.{i << 8}" for i in range(3, NUM)]
    assert {each["method"] for each in told["slowest"]} == {"think"}
    assert sum(told["busy_for"]["counts"]) == NUM - 3
    assert [each["id"] for each in busy] == [each["id"] for each in told["slowest"]]
    assert all(each["for_s"] >= 0 for each in busy)


def test_an_agent_is_described_and_what_was_done_to_it() -> None:
    def ask(client: httpx.Client, refs: list[Any]) -> Any:
        kernel = refs[0]._desk.kernel
        kernel.post(lambda: refs[0].tell("tell", "<script>alert(1)</script>" + "x" * 2 * LONGEST))
        until(client, lambda told: told["fields"][0]["name"] == "name", "/ui/agents/one?id=0.0")
        assert do(client, "pause", agent="0.0").json() == {"done": True}
        assert do(client, "resume", agent="0.0").status_code == 200
        assert do(client, "pause", host="here").status_code == 200
        assert do(client, "resume", agent="0.256").status_code == 200
        return client.get("/ui/agents/one", params={"id": "0.0"})

    reply, _ = of_thinkers(2, ask)
    assert reply.headers["content-type"] == "application/json"
    told = reply.json()
    fields = {field["name"]: field["value"] for field in told["fields"]}
    assert (told["host"], told["class"], told["state"]) == ("here", "Thinker", "paused")
    assert fields["name"] == "thinker 0"
    assert fields["told"].startswith("['<script>alert(1)</script>xxx")
    assert len(fields["told"]) <= LONGEST
    assert [event["what"] for event in told["events"]] == ["pause", "resume", "pause"]


def test_html_in_a_name_is_text() -> None:
    name = "<img src=x onerror=alert(1)>"
    evil = type(name, (Thinker,), {})

    def ask(client: httpx.Client, refs: list[Any]) -> Any:
        actors = refs[0]._desk.actors
        actors.kernel.post(lambda: actors.create(evil, "<b>").tell("tell", 1))
        until(client, lambda told: told["fields"][0]["name"] == "name", "/ui/agents/one?id=0.256")
        return client.get("/ui/agents/one?id=0.256"), until(client, lambda told: len(told["kinds"]) == 2)

    (one, overview), _ = of_thinkers(1, ask)
    assert one.headers["content-type"] == "application/json"
    assert one.json()["class"] == name
    assert one.json()["fields"][0]["value"] == "<b>"
    assert name in {kind["class"] for kind in overview["kinds"]}


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/ui/agents/one?id=0.999999", None, 404),
        ("GET", "/ui/agents/one?id=9.0", None, 404),
        ("GET", "/ui/agents/one?id=0.255", None, 404),
        ("GET", "/ui/agents/one?id=%3Cb%3E", None, 404),
        ("GET", "/ui/agents/one?id=0.-1", None, 404),
        ("GET", "/ui/agents/list?limit=201", None, 400),
        ("GET", "/ui/agents/list?state=tired", None, 400),
        ("GET", "/ui/agents/list?host=nowhere", None, 404),
        ("GET", "/ui/agents/list?after=x", None, 404),
        ("GET", "/ui/agents?at=nan", None, 400),
        ("POST", "/ui/agents/do", {"do": "hug", "agent": "0.0"}, 400),
        ("POST", "/ui/agents/do", {"do": "kill"}, 400),
        ("POST", "/ui/agents/do", {"do": "kill", "agent": "0.0", "host": "here"}, 400),
        ("POST", "/ui/agents/do", {"do": "kill", "agent": "0.999999"}, 404),
        ("POST", "/ui/agents/do", {"do": "pause", "host": "nowhere"}, 404),
    ],
)
def test_what_cannot_be_is_refused(method: str, path: str, body: Any, status: int) -> None:
    def ask(client: httpx.Client, refs: list[Any]) -> httpx.Response:
        return client.request(method, path, json=body)

    reply, trace = of_thinkers(2, ask)
    assert reply.status_code == status
    assert set(reply.json()) == {"error"}
    assert [span for span in trace.spans if span.kind == "did"] == []


def test_only_its_own_page_may_change_something() -> None:
    body = {"do": "pause", "host": "here"}

    def ask(client: httpx.Client, refs: list[Any]) -> list[int]:
        own = str(client.base_url).rstrip("/")
        post = [
            client.post("/ui/agents/do", json=body, headers=headers).status_code
            for headers in (
                {"origin": "https://elsewhere.example"},
                {"origin": "null"},
                {"sec-fetch-site": "cross-site"},
                {"origin": own, "sec-fetch-site": "same-origin"},
            )
        ]
        other = client.get("/ui/agents", headers={"host": "elsewhere.example"}).status_code
        return [*post, other]

    statuses, trace = of_thinkers(1, ask)
    assert statuses == [403, 403, 403, 200, 400]
    assert [span.name for span in trace.spans if span.kind == "did"] == ["pause"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is no address of its own")
def test_it_listens_on_loopback_only() -> None:
    def ask(client: httpx.Client, refs: list[Any]) -> int | None:
        port = urlsplit(str(client.base_url)).port
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port or 0), timeout=5)
        return port

    port, _ = of_thinkers(1, ask)
    assert port


def test_steering_changes_the_run_and_is_in_its_trace() -> None:
    def ask(client: httpx.Client, refs: list[Any]) -> Any:
        kernel = refs[0]._desk.kernel
        assert do(client, "pause", agent="0.0").status_code == 200
        kernel.post(lambda: [refs[0].tell("tell", 1), refs[1].tell("tell", 1)])
        held = until(client, lambda told: told["waiting"] == 1, "/ui/agents/one?id=0.0")
        assert do(client, "resume", agent="0.0").status_code == 200
        went_on = until(client, lambda told: told["waiting"] == 0, "/ui/agents/one?id=0.0")
        assert do(client, "kill", agent="0.256").status_code == 200
        again = do(client, "kill", agent="0.256")
        assert again.status_code == 404
        gone = listed(client, state="killed")
        assert do(client, "pause", host="here").status_code == 200
        paused = until(client, lambda told: told["hosts"][0]["paused"] == NUM - 1)
        assert do(client, "resume", host="here").status_code == 200
        assert do(client, "kill", host="here").status_code == 200
        return held, went_on, gone, paused, until(client, lambda told: told["total"] == 0)

    (held, went_on, gone, paused, none), trace = of_thinkers(NUM, ask)
    assert held["state"] == "paused"
    assert {field["name"]: field["value"] for field in went_on["fields"]}["told"] == "[1]"
    assert [agent["id"] for agent in gone] == ["0.256"]
    assert paused["total"] == NUM - 1
    assert none["kinds"] == []
    did = [(span.rank, span.name, dict(span.args or {})) for span in trace.spans if span.kind == "did"]
    host = {"host": "here", "by": "page"}
    assert did == [
        ("here", "pause", {"agent": "0.0", "by": "page"}),
        ("here", "resume", {"agent": "0.0", "by": "page"}),
        ("here", "kill", {"agent": "0.256", "by": "page"}),
        ("here", "pause", host),
        ("here", "resume", host),
        ("here", "kill", host),
    ]


def test_a_page_that_was_away_goes_on_where_it_was() -> None:
    def ask(client: httpx.Client, refs: list[Any]) -> Any:
        first = feed(client, lambda events: events[-1][1] == "stats")
        for _ in range(3):
            do(client, "pause", agent="0.0")
            do(client, "resume", agent="0.0")
        last = first[-1][0]
        after = feed(
            client,
            lambda events: sum(name == "did" for _, name, _ in events) == 6,
            headers={"last-event-id": str(last)},
        )
        again = feed(client, lambda events: len(events) == 3, params={"last": after[2][0]})
        new = feed(client, lambda events: sum(name == "did" for _, name, _ in events) == 6)
        return last, after, again, new

    (last, after, again, new), _ = of_thinkers(2, ask)
    numbers = [number for number, _, _ in after]
    assert numbers == [*range(last + 1, last + 1 + len(numbers))]
    assert [data["do"] for _, name, data in after if name == "did"] == ["pause", "resume"] * 3
    assert [number for number, _, _ in again] == [*range(numbers[2] + 1, numbers[2] + 4)]
    assert "gap" not in {name for _, name, _ in new}


def test_what_is_lost_is_told() -> None:
    ring = Ring(keep=3)
    assert ring.after(0) == []
    for i in range(1, 8):
        assert ring.add("did", {"i": i}) == i
    assert [event.number for event in ring.after(5)] == [6, 7]
    assert [event.number for event in ring.after(4)] == [5, 6, 7]
    gap, *rest = ring.after(2)
    assert (gap.number, gap.name, json.loads(gap.data)) == (4, "gap", {"from": 3, "to": 4})
    assert [event.number for event in rest] == [5, 6, 7]
    assert ring.after(7) == []
    assert ring.add("end", {}) == ring.add("stats", {}) == 8
    assert [event.name for event in ring.after(7)] == ["end"]


# -- on a virtual clock


def watch_simulated(main: Any, ask: Any, hosts: int = 2) -> tuple[Any, Any, Trace]:
    """What main(actors) and ask(client, actors) come to, beside each other."""
    trace = Trace("simulated")
    kernel = Kernel(trace=trace)
    monitor = Monitor("thinkers", trace)
    with Actors(kernel, [Simulated(name=f"sim {i}") for i in range(hosts)]) as actors:

        def from_outside() -> Any:
            while not monitor.url:
                pass
            with httpx.Client(base_url=monitor.url, timeout=60) as client:
                return ask(client, actors)

        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(from_outside)
            done = monitor.perform(actors, main(actors))
            return done, asked.result(60), trace


def test_a_simulation_waits_for_whom_the_page_paused() -> None:
    async def main(actors: Actors) -> float:
        refs = [actors.create(Thinker, "x", on=place) for place in actors.places[1:]]
        await actors.pause_place(1)
        await actors.kernel.gather(*(ref.think(3.0) for ref in refs))
        return actors.kernel.now()

    def ask(client: httpx.Client, actors: Actors) -> Any:
        told = until(client, lambda told: told["now_s"] == 3.0)
        assert do(client, "resume", host="sim 0").status_code == 200
        return told

    done, told, trace = watch_simulated(main, ask)
    assert [host["paused"] for host in told["hosts"]] == [1, 0]
    assert done == 6.0
    (did,) = [span for span in trace.spans if span.kind == "did"]
    assert (did.rank, did.start_s) == ("sim 0", 3.0)


def test_a_simulation_that_cannot_go_on_says_so() -> None:
    async def main(actors: Actors) -> None:
        await actors.kernel.future("a letter")

    with pytest.raises(DeadlockError, match="a letter"):
        watch_simulated(main, lambda client, actors: None)


def test_looking_at_a_simulation_does_not_change_it() -> None:
    async def main(actors: Actors) -> float:
        refs = [actors.create(Thinker, "x", on=actors.places[1]) for _ in range(50)]
        for _ in range(200):
            await actors.kernel.gather(*(ref.think(1.0) for ref in refs))
        return actors.kernel.now()

    def ask(client: httpx.Client, actors: Actors) -> int:
        events = feed(client, lambda events: events[-1][1] == "end")
        return len(events)

    done, num_events, trace = watch_simulated(main, ask)
    plain = Trace("simulated")
    with Actors(Kernel(trace=plain), [Simulated(name=f"sim {i}") for i in range(2)]) as actors:
        assert actors.kernel.run(main(actors)) == done
    assert num_events >= 1
    assert plain.hash() == trace.hash()


# -- on two processes


@pytest.mark.multiproc
def test_a_game_on_two_processes_is_steered(game: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with simulating(game, "--place", "process:2", "--trace", str(kept)) as (process, client):
        told = until(client, lambda told: told["total"] == 302 and number_of(told) >= 2)
        assert [host["place"] for host in told["hosts"]] == ["process 0", "process 1"]
        assert told["kinds"] == [{"class": "LevelPlayer", "count": 300}, {"class": "Group", "count": 2}]
        agents = listed(client, host="process 1", limit=100)
        assert len(agents) == 151
        player = agents[-1]
        one = client.get("/ui/agents/one", params={"id": player["id"]}).json()
        assert (one["host"], one["class"]) == ("process 1", "LevelPlayer")
        assert "index" in {field["name"] for field in one["fields"]}

        assert do(client, "pause", host="process 0").status_code == 200
        held = until(client, lambda told: told["hosts"][0]["paused"] == 151 and told["hosts"][0]["busy"] <= 1)
        stuck = number_of(held)
        assert number_of(until(client, lambda told: told["now_s"] > held["now_s"] + 0.5)) <= stuck + 1
        assert do(client, "resume", host="process 0").status_code == 200
        until(client, lambda told: number_of(told) >= stuck + 3)

        assert do(client, "kill", agent=player["id"]).status_code == 200
        until(client, lambda told: told["rounds"][-1]["answers"] == 299)
        assert do(client, "kill", host="process 1").status_code == 200
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert "place 2 was killed" in process.stderr.read()
    with TestClient(saved_app(kept), base_url="http://localhost") as page:
        events = feed(page, lambda events: False)
        did = [data for _, name, data in events if name == "did"]
        assert [(each["do"], each.get("host") or each["agent"]) for each in did] == [
            ("pause", "process 0"),
            ("resume", "process 0"),
            ("kill", player["id"]),
            ("kill", "process 1"),
        ]
        at_pause = page.get("/ui/agents", params={"at": held["now_s"]}).json()
        assert at_pause["hosts"][0]["paused"] == 151
        assert [done["number"] for done in at_pause["rounds"] if done["end_s"]] == [*range(1, stuck + 1)]
        assert do(page, "kill", host="process 0").status_code == 409


@pytest.mark.multiproc
def test_a_host_that_stands_still_is_told_and_nothing_else_waits(game: Path) -> None:
    with simulating(game, "--place", "process:2") as (process, client):
        until(client, lambda told: told["total"] == 302)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.exists():
            pytest.skip("which processes it has started is not told here")
        pids = [int(pid) for pid in children.read_text().split()]
        (of_0,) = client.get("/ui/agents/list?host=process 0&limit=1").json()["agents"]
        (of_1,) = client.get("/ui/agents/list?host=process 1&limit=1").json()["agents"]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            asked = [client.get("/ui/agents/one", params={"id": agent["id"]}) for agent in (of_0, of_1)]
            assert {reply.status_code for reply in asked} == {504}
            assert "does not answer" in asked[0].json()["error"]["message"]
            assert client.get("/ui/agents").json()["total"] == 302
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        assert client.get("/ui/agents/one", params={"id": of_0["id"]}).status_code == 200


@pytest.mark.multiproc
def test_a_page_may_stay_until_ctrl_c(game: Path) -> None:
    said = json.loads(game.read_text()) | {"rounds": 2}
    game.write_text(json.dumps(said))
    with simulating(game, "--place", "sim:2", "--page-stays", "--json") as (process, client):
        told = until(client, lambda told: told["ended"])
        assert (told["steerable"], number_of(told), told["total"]) == (False, 2, 302)
        assert client.get("/ui/agents/one?id=1.256").json()["class"] == "LevelPlayer"
        assert do(client, "kill", agent="1.256").status_code == 409
        assert feed(client, lambda events: False)[-1][1] == "end"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stdout is not None
        assert len(json.loads(process.stdout.read())["rounds"]) == 2
