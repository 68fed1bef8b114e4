"""Arrows of the page: from a send to its receive, as files have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browsing import Page, choose

from lightwork.parallel.all_reduces.ring import ring_all_reduce
from lightwork.runtime import Effect, Fifo, Kernel, Meta, Price, Send, SimWorld
from lightwork.runtime.perfetto import write_chrome_trace
from lightwork.runtime.trace import Trace

pytestmark = pytest.mark.multiproc


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ring all-reduce of four simulated ranks."""
    trace = Trace("simulated: a ring")
    resources = {f"out:{r}": Fifo(f"out:{r}") for r in range(4)}
    world = SimWorld(Kernel(trace=trace), _link, resources)
    for r in range(4):
        world.launch(r, ring_all_reduce(r, 4, [Meta((1000,), "float32")] * 4))
    world.run()
    file = tmp_path_factory.mktemp("rings") / "ring.json"
    write_chrome_trace(file, [trace])
    return file


def _link(effect: Effect, rank: int) -> Price:
    if isinstance(effect, Send):
        return Price((((f"out:{rank}",), effect.x.nbytes / 25e9),), 3e-6)
    return Price()


def test_messages_are_the_arrows_of_the_file(page: Page, url: str, ring: Path):
    page.goto(f"{url}/ui")
    choose(page, "#open", ring)
    page.wait_for_function("shown.live === null && shown.runs.length === 1")
    events = json.loads(ring.read_text(encoding="utf-8"))["traceEvents"]
    rank_of = {e["tid"]: e["args"]["rank"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    begins = {e["id"]: (rank_of[e["tid"]], e["ts"]) for e in events if e["ph"] == "s"}
    ends = {e["id"]: (rank_of[e["tid"]], e["ts"]) for e in events if e["ph"] == "f"}
    arrows = sorted((*begins[i], *ends[i]) for i in begins)
    assert len(arrows) == 2 * 3 * 4
    found = page.evaluate(
        """shown.runs[0].messages.pairs.map(
          ({ send, recv }) => [send.rank, send.start_s * 1e6, recv.rank, recv.end_s * 1e6])"""
    )
    for ours, theirs in zip(sorted(map(tuple, found)), arrows, strict=True):
        assert (ours[0], ours[2]) == (theirs[0], theirs[2])
        assert (ours[1], ours[3]) == pytest.approx((theirs[1], theirs[3]), abs=2e-3)
    strokes = page.evaluate(
        """() => { let n = 0;
          const canvas = CanvasRenderingContext2D.prototype, curve = canvas.bezierCurveTo;
          canvas.bezierCurveTo = function (...at) { n += 1; curve.apply(this, at); };
          showWhole(); drawLanes(); canvas.bezierCurveTo = curve; return n; }"""
    )
    assert strokes == len(arrows)


def test_a_key_leads_from_a_send_to_its_receive_and_back(page: Page, url: str, ring: Path):
    page.goto(f"{url}/ui")
    choose(page, "#open", ring)
    page.wait_for_function("shown.live === null && shown.runs.length === 1")
    page.evaluate(
        """() => { const { send } = shown.runs[0].messages.pairs[5];
          showSpan(shown.runs[0], send, send.row); }"""
    )
    send, peer = page.evaluate("[shown.selected.span.rank, shown.selected.span.peer]")
    page.keyboard.press("m")
    assert page.evaluate("[shown.selected.span.kind, shown.selected.span.rank]") == ["recv", peer]
    assert "under way" in page.inner_text("#why-body")
    page.click(f"#why-body button:has-text('send of {send}')")
    assert page.evaluate("shown.selected.span === shown.runs[0].messages.pairs[5].send")


def test_what_a_live_run_forgets_of_messages_misleads_no_arrow(page: Page, url: str):
    page.goto(f"{url}/ui")
    told = page.evaluate(
        """() => { const run = new Run("x");
          const add = (kind, rank, peer, start_s, end_s) => run.add(
              { kind, rank, peer, start_s, end_s, name: kind, bytes: 1, args: { i: start_s } });
          for (let i = 0; i < 6; i++) {
              add("send", "0", "1", i, i + 0.2); add("recv", "1", "0", i, i + 2.5);
          }
          run.add({ kind: "recv", rank: "1", peer: "0", start_s: 9, end_s: 9.5, name: "early", args: {} });
          run.add({ kind: "send", rank: "0", peer: "1", start_s: 8.9, end_s: 9.6, name: "late", args: {} });
          const kept = run.latest(9);
          return { all: run.messages.pairs.length, kept: kept.messages.pairs.map(
              ({ send, recv }) => [send.start_s, recv.start_s]),
            alone: kept.spans.filter((span) => span.message === null).length }; }"""
    )
    assert told == {"all": 7, "kept": [[3, 3], [4, 4], [5, 5], [8.9, 9]], "alone": 1}
