"""What the page asks for: of a real server, and over a saved trace."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from browsing import started
from starlette.testclient import TestClient

from lightwork.claims.systems import SYSTEMS
from lightwork.cli import main
from lightwork.plan.why import explain
from lightwork.runtime.perfetto import write_chrome_trace
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.http.main import Loaded
from lightwork.web.routes import ASSETS, FOLDER, saved_app

STEP = {"rank": "engine", "kind": "step", "name": "step 1", "start_s": 1.0, "end_s": 2.0}


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as made:
        yield made


def heard(http: httpx.Client, until: Callable[[list[dict]], bool]) -> list[dict]:
    """Spans of the live feed until they are enough."""
    found: list[dict] = []
    with http.stream("GET", "/ui/feed") as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        kind = ""
        for line in reply.iter_lines():
            kind = line.removeprefix("event: ") if line.startswith("event: ") else kind
            if kind == "spans" and line.startswith("data: "):
                found += json.loads(line.removeprefix("data: "))
                if until(found):
                    return found
    raise AssertionError("the feed ended")


def ended(n: int) -> Callable[[list[dict]], bool]:
    return lambda spans: sum(span["kind"] == "finish" for span in spans) >= n


def test_the_page_may_speak_to_its_own_server_only(http: httpx.Client):
    reply = http.get("/ui")
    assert reply.headers["content-type"].startswith("text/html")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    ours = [reply.text, *(http.get(f"/ui/{name}").text for name in ASSETS if not name.startswith("uPlot"))]
    assert [re.findall(r"https?://[^\s\"')]+", text) for text in ours] == [[]] * len(ours)


@pytest.mark.parametrize("name", ASSETS)
def test_what_the_page_is_made_of_is_served(http: httpx.Client, name: str):
    assert http.get(f"/ui/{name}").content == (FOLDER / name).read_bytes()
    assert "MIT License" in (FOLDER / "uPlot.LICENSE").read_text(encoding="utf-8")


def test_the_scoreboard_has_every_system(http: httpx.Client):
    standings = http.get("/ui/claims").json()
    assert [each["number"] for each in standings] == [system.number for system in SYSTEMS]
    assert {each["state"] for each in standings} <= {"reproduced", "missed", "not built yet"}
    assert all(v["title"] and v["state"] for each in standings for v in each["verdicts"])


def test_the_feed_tells_the_spans_of_requests(http: httpx.Client, ask: Callable[[int], None], loaded: Loaded):
    before = sum(span.kind == "finish" for span in loaded.trace.spans)
    ask(2)
    spans = heard(http, ended(before + 2))
    assert {"arrive", "admit", "step", "finish"} <= {span["kind"] for span in spans}
    step = next(span for span in spans if span["kind"] == "step")
    assert len(step["args"]["chunks"][0]) == 5


def test_why_is_what_the_verb_says(http: httpx.Client, ask: Callable[[int], None], loaded: Loaded):
    ask(2)
    seq_id = max(int(span.name) for span in loaded.trace.spans if span.kind == "arrive")
    spans = heard(http, lambda found: any(s["kind"] == "finish" and s["name"] == str(seq_id) for s in found))
    told = http.post("/ui/why", json={"id": seq_id, "spans": spans}).json()
    parts = explain([Span(**span) for span in spans], seq_id)
    assert told["parts"] == [part._asdict() for part in parts]
    assert sum(part["seconds"] for part in told["parts"]) == pytest.approx(told["seconds"])
    assert {"prefill", "decode"} <= {part["name"] for part in told["parts"]}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"id": 9, "spans": []}, "no step of this trace contains sequence 9"),
        ({"id": "x", "spans": []}, "id is 'x'"),
        ({"id": 1, "spans": [{**STEP, "args": {"chunks": [[1, 2]]}}]}, "chunks"),
        ({"id": 1, "spans": [{**STEP, "end_s": "soon"}]}, "end_s"),
        ({"id": 1}, "spans is missing"),
    ],
)
def test_a_why_that_cannot_be_is_refused(http: httpx.Client, body: dict, says: str):
    reply = http.post("/ui/why", json=body)
    assert reply.status_code == 400
    assert says in reply.json()["error"]["message"]


def saved(folder: Path) -> Path:
    trace = Trace("simulated: two ranks")
    trace.add(Span("0", "compute", "forward", 0.0, 1.0))
    write_chrome_trace(folder / "out.json", [trace])
    return folder / "out.json"


@pytest.mark.multiproc
def test_a_saved_trace_has_a_page_until_ctrl_c(tmp_path: Path):
    file = saved(tmp_path)
    with started("trace", str(file), "--page") as (process, url):
        assert "<title>lightwork</title>" in httpx.get(f"{url}/ui").text
        told = {"live": False, "name": "out.json", "file": "out.json"}
        assert httpx.get(f"{url}/ui/source").json() == told
        assert httpx.get(f"{url}/ui/file").content == file.read_bytes()
        assert httpx.get(f"{url}/ui/feed").status_code == 404
        assert httpx.get(f"{url}/ui/file", headers={"host": "elsewhere.example"}).status_code == 400
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_a_run_folder_has_a_page(tmp_path: Path):
    """By its events, which a run that was killed has too."""
    folder = tmp_path / "recorded"
    assert main(["sim", "shape:llama-3-8b", "--on", "sim:a100", "--trace", str(folder)]) == 0
    (folder / "trace.json").unlink()
    with TestClient(saved_app(folder), base_url="http://localhost") as page:
        told = {"live": False, "name": "recorded", "file": "events.jsonl"}
        assert page.get("/ui/source").json() == told
        assert page.get("/ui/file").content == (folder / "events.jsonl").read_bytes()


@pytest.mark.multiproc
def test_an_open_page_does_not_hold_up_a_server_that_drains():
    with (
        started("serve", "tiny:llama", "--port", "0", "--max-len", "64") as (process, url),
        httpx.stream("GET", f"{url}/ui/feed", timeout=60) as reply,
    ):
        lines = reply.iter_lines()
        assert next(lines) == "event: hello"
        process.send_signal(signal.SIGTERM)
        assert "event: end" in list(lines)
        assert process.wait(60) == 0


def test_a_page_prints_no_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["trace", str(saved(tmp_path)), "--page", "--json"]) == 2
    assert "--page or --json" in capsys.readouterr().err
