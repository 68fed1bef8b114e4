"""The page in a real browser: what it shows of real requests and saved traces, by mouse and by keyboard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import AXE, Page, axe_finds, choose

from lightwork.cli import main
from lightwork.plan.why import explain
from lightwork.runtime.perfetto import read_chrome_trace, write_chrome_trace
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.http.main import Loaded
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.loads.poisson import Poisson
from lightwork.serve.metrics import summarise
from lightwork.serve.plan import Plan
from lightwork.serve.run_folder import EVENTS, read_run
from lightwork.serve.simulate import simulate

pytestmark = pytest.mark.multiproc
Ask = Callable[[int], None]
MANY = 50_000


def opened(page: Page, url: str, requests: int) -> None:
    """Open the live page and wait for the end of so many requests."""
    page.goto(f"{url}/ui")
    page.wait_for_function(
        """n => shown.runs.length
          && [...shown.runs[0].requests.values()].filter(r => r.state !== "open").length >= n""",
        arg=requests,
    )
    page.wait_for_selector("#requests tbody button")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    load = Poisson(rate=40.0, num_requests=30, lengths=Lognormal(prompt=400, output=40))
    trace = simulate(Plan(model="shape:llama-3-8b", on="sim:a100", kv_bytes=1 << 30), load).trace
    file = tmp_path_factory.mktemp("traces") / "simulated.json"
    write_chrome_trace(file, [trace])
    return file


def colours_of(page: Page, canvas: str) -> int:
    """How many different pixels a canvas has."""
    return page.evaluate(
        """id => { const c = document.getElementById(id);
          const d = new Uint32Array(c.getContext("2d").getImageData(0, 0, c.width, c.height).data.buffer);
          return new Set(d).size; }""",
        canvas,
    )


def test_a_request_of_the_live_server_says_why(page: Page, url: str, ask: Ask, loaded: Loaded):
    ask(3)
    opened(page, url, 3)
    assert "live, connected: real: cpu" in page.inner_text("#status")
    assert page.evaluate("shown.runs[0].spans.length") > 9
    assert colours_of(page, "canvas") > 4
    assert colours_of(page, "kv") > 2
    page.click("#requests tbody button >> nth=0")
    table = page.wait_for_selector("#why-body table[data-sum]")
    total, life = (float(table.get_attribute(name)) for name in ("data-sum", "data-latency"))
    assert total == pytest.approx(life, rel=1e-6)
    request = page.evaluate("shown.request.id")
    parts = explain(list(loaded.trace.spans), int(request))
    assert sum(part.seconds for part in parts) == pytest.approx(total, rel=1e-6)
    shown = page.eval_on_selector_all("#why-body tbody tr td:first-child", "all => all.map(e => e.innerText)")
    assert shown == [part.name for part in parts]
    assert f"Why request {request} took" in page.inner_text("#why-title")


def test_the_policy_forbids_nothing_that_the_page_does(browser: Any, url: str, ask: Ask):
    ask(1)
    said: list[str] = []
    context = browser.new_context()
    strict = context.new_page()
    strict.on("console", lambda message: said.append(message.text))
    strict.on("pageerror", lambda error: said.append(str(error)))
    strict.goto(f"{url}/ui")
    strict.click("#requests tbody button >> nth=0", timeout=60_000)
    strict.wait_for_selector("#why-title:has-text('request')", timeout=60_000)
    strict.wait_for_selector("#queue canvas", timeout=60_000)
    context.close()
    assert said == []


def test_spans_appear_while_the_page_is_open(page: Page, url: str, ask: Ask):
    ask(1)
    opened(page, url, 1)
    before = page.evaluate("shown.runs[0].requests.size")
    ask(2)
    page.wait_for_function("n => shown.runs[0].requests.size >= n", arg=before + 2)
    page.wait_for_function(
        "n => document.querySelectorAll('#requests tbody tr').length >= n", arg=min(100, before + 2)
    )


def test_a_click_on_a_step_leads_to_its_requests(page: Page, url: str, ask: Ask):
    ask(1)
    opened(page, url, 1)
    page.click("#whole")
    x, y = page.evaluate(
        """() => { const { row, run, y } = layout.find(each => each.group === "compute");
          const length = i => row.ends[i] - row.starts[i];
          const longest = row.spans.reduce((best, _, i) => length(i) > length(best) ? i : best, 0);
          const scale = ($("lanes").clientWidth - GUTTER) / (shown.to - shown.from);
          const middle = (row.starts[longest] + row.ends[longest]) / 2 - run.origin_s;
          return [GUTTER + (middle - shown.from) * scale, y + 8]; }"""
    )
    page.locator("#canvas").click(position={"x": x, "y": y})
    assert page.inner_text("#why-title").startswith("step ")
    page.click("#why-body tbody button >> nth=0")
    page.wait_for_selector("#why-body table[data-sum]")


def test_the_keyboard_does_everything(page: Page, url: str, ask: Ask):
    ask(2)
    opened(page, url, 2)
    page.keyboard.press("Home")
    start, end = page.evaluate("[shown.from, shown.to]")
    page.keyboard.press("+")
    nearer = page.evaluate("[shown.from, shown.to]")
    assert nearer[1] - nearer[0] == pytest.approx((end - start) / 1.5)
    page.keyboard.press("ArrowRight")
    assert page.evaluate("shown.from") > nearer[0]
    page.keyboard.press("-")
    page.keyboard.press("Home")
    assert page.evaluate("[shown.from, shown.to]") == pytest.approx([start, end])
    page.keyboard.press(".")
    assert "Selected: " in page.inner_text("#lanes-words")
    page.keyboard.press("r")
    first = page.evaluate("document.activeElement.dataset.key")
    page.keyboard.press("ArrowDown")
    second = page.evaluate("document.activeElement.dataset.key")
    assert first is not None
    assert second not in (None, first)
    page.keyboard.press("Enter")
    page.wait_for_selector("#why-body table[data-sum]")
    assert page.evaluate("shown.request.id") == second.split()[1]
    page.keyboard.press("Escape")
    assert page.evaluate("shown.request") is None
    page.keyboard.press("?")
    assert page.is_visible("#help")
    assert "the whole run" in page.inner_text("#help-keys")
    page.keyboard.press("Escape")
    assert page.is_hidden("#help")
    page.keyboard.press("End")
    assert page.get_attribute("#follow", "aria-pressed") == "true"


def test_dark_and_light_follow_the_system_and_a_key(page: Page, url: str):
    page.goto(f"{url}/ui")
    back = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(back)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(back)
    assert dark != light
    page.keyboard.press("d")
    assert page.evaluate(back) == light
    page.reload()
    assert page.evaluate(back) == light, "and it is remembered"
    page.click("#theme")
    assert page.evaluate(back) == dark


def test_a_simulated_run_stands_beside_the_live_one(page: Page, url: str, ask: Ask, simulated: Path):
    ask(1)
    opened(page, url, 1)
    choose(page, "#beside", simulated)
    page.wait_for_function("shown.runs.length === 2")
    lines = page.eval_on_selector_all("#figures tbody td:first-child", "all => all.map(e => e.innerText)")
    assert lines == ["real: cpu", "simulated: sim:a100", "second / first"]
    for label in lines[:2]:
        page.wait_for_selector(f"#kv-words:has-text('{label}, blocks: ')")
    assert page.evaluate("shown.to") >= page.evaluate("shown.runs[1].length_s")
    page.click("#lanes-more summary")
    page.wait_for_selector("#lanes-table tbody td")
    ranks = page.eval_on_selector_all("#lanes-table tbody td:first-child", "all => all.map(e => e.innerText)")
    assert ranks == ["real: cpu", "simulated: sim:a100"]


def test_a_saved_trace_opens_and_its_figures_are_those_of_the_summary(page: Page, url: str, simulated: Path):
    page.goto(f"{url}/ui")
    choose(page, "#open", simulated)
    page.wait_for_function("shown.live === null && shown.runs.length === 1")
    summary = summarise(read_chrome_trace(simulated)[0], simulated=True)
    found = page.evaluate(
        """(([run]) => ({ num_requests: run.requests.size, steps: run.numSteps,
          num_preempted: run.numPreempted,
          ttft_p50_s: percentile(run.ttft.ys[0], 0.5), ttft_p99_s: percentile(run.ttft.ys[0], 0.99),
          tbt_p50_s: percentile(run.gaps, 0.5), tbt_p99_s: percentile(run.gaps, 0.99),
          queue_p50_s: percentile([...run.requests.values()].map(queued), 0.5),
          kv_usage_max: run.peak.kv, num_finished: [...run.requests.values()].filter(r => r.end_s).length
        }))(shown.runs)"""
    )
    told = summary.to_dict()
    assert found == pytest.approx({name: told[name] for name in found}, rel=1e-6)
    assert summary.num_preempted > 0
    names, values = (
        page.eval_on_selector_all(f"#figures {part} > *", "all => all.map(e => e.innerText)")
        for part in ("thead tr", "tbody tr")
    )
    assert dict(zip(names, values, strict=True))["steps"] == f"{summary.steps:,}"
    page.click("#requests tbody button >> nth=5")
    table = page.wait_for_selector("#why-body table[data-sum]")
    total, life = (float(table.get_attribute(name)) for name in ("data-sum", "data-latency"))
    assert total == pytest.approx(life, rel=1e-6)
    page.click("#live")
    page.wait_for_function("shown.live?.state === 'connected'")


def test_a_live_run_forgets_its_oldest_spans_but_not_its_figures(page: Page, url: str, simulated: Path):
    page.goto(f"{url}/ui")
    choose(page, "#open", simulated)
    page.wait_for_function("shown.live === null && shown.runs.length === 1")
    told = page.evaluate(
        """() => { const run = shown.runs[0], kept = run.latest(run.spans.length - 40);
          const figures = r => [queued(r), toFirst(r), latency(r), r.prompt, r.output];
          const same = r => JSON.stringify(figures(r)) === JSON.stringify(figures(run.requests.get(r.id)));
          const all = [...kept.requests.values()];
          return { gone: run.spans.length - kept.spans.length, all: all.length,
            origin: kept.origin_s === run.origin_s,
            partial: all.filter(r => r.partial).length, same: all.filter(same).length,
            before: all.filter(r => r.arrived_s < kept.since_s).length }; }"""
    )
    assert told["gone"] == 40
    assert told["origin"], "the time axis stays"
    assert 0 < told["partial"] == told["before"] < told["all"] == told["same"]


def test_a_file_can_be_dropped_and_a_wrong_one_is_refused(page: Page, url: str, simulated: Path):
    page.goto(f"{url}/ui")
    page.wait_for_function("shown.runs.length === 1")
    drop = """([text, shiftKey]) => { const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([text], "dropped.json"));
      document.dispatchEvent(new DragEvent("drop", { dataTransfer, shiftKey, cancelable: true })); }"""
    page.evaluate(drop, [simulated.read_text(encoding="utf-8"), True])
    page.wait_for_function("shown.runs.length === 2")
    page.evaluate(drop, ['{"traceEvents": 3}', False])
    page.wait_for_selector("#notice:not([hidden])")
    assert "dropped.json is not a trace" in page.inner_text("#notice")
    assert page.evaluate("shown.runs.length") == 2, "what was shown stays"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, and beside it one of a run that was killed while it wrote."""
    folder = tmp_path_factory.mktemp("runs")
    whole, killed = folder / "whole", folder / "killed"
    assert main(["sim", "shape:llama-3-8b", "--on", "sim:a100", "--trace", str(whole)]) == 0
    killed.mkdir()
    lines = (whole / EVENTS).read_text(encoding="utf-8").splitlines(keepends=True)
    (killed / EVENTS).write_text("".join(lines[:400]) + lines[400][:20], encoding="utf-8")
    return folder


def shown_figures(page: Page) -> dict[str, Any]:
    return page.evaluate(
        """(([run]) => ({ label: run.label, spans: run.spans.length, requests: run.requests.size,
          steps: run.numSteps, tokens: run.tokens, block: run.blockSize }))(shown.runs)"""
    )


def figures_of(trace: Trace) -> dict[str, Any]:
    steps = [span for span in trace.spans if span.kind == "step"]
    chunks = [chunk for span in steps for chunk in (span.args or {})["chunks"]]
    return {
        "label": trace.label,
        "spans": len(trace.spans),
        "requests": len({span.name for span in trace.spans if span.kind == "arrive"}),
        "steps": len(steps),
        "tokens": sum(chunk[4] for chunk in chunks),
        "block": trace.about["block_size"],
    }


@pytest.mark.parametrize("name", ["whole", "killed"])
def test_a_run_folder_opens(page: Page, url: str, recorded: Path, name: str):
    """Whatever it holds beside, and though its last line is half written."""
    page.goto(f"{url}/ui")
    page.wait_for_function("shown.runs.length === 1")
    choose(page, "#open-folder", recorded / name)
    page.wait_for_function("shown.live === null && shown.runs.length === 1")
    assert shown_figures(page) == figures_of(read_run(recorded / name).trace)
    page.click("#requests tbody button >> nth=0")
    page.wait_for_selector("#why-body table[data-sum]")


def test_files_of_a_run_folder_open_and_other_folders_do_not(page: Page, url: str, recorded: Path):
    page.goto(f"{url}/ui")
    page.wait_for_function("shown.runs.length === 1")
    choose(page, "#open", [*(recorded / "whole").iterdir()])
    page.wait_for_function("shown.live === null && shown.runs.length === 1")
    assert shown_figures(page)["spans"] == len(read_run(recorded / "whole").trace.spans)
    choose(page, "#open-folder", recorded)
    page.wait_for_selector("#notice:has-text('2 runs are in it')")
    choose(page, "#open-folder", AXE.parent)
    page.wait_for_selector("#notice:has-text('events.jsonl or trace.json is not in it')")


def test_a_folder_can_be_dropped(page: Page, url: str, recorded: Path):
    page.goto(f"{url}/ui")
    page.wait_for_function("shown.runs.length === 1")
    devtools = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(recorded / "whole")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        devtools.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": data})
    page.wait_for_function("shown.live === null && shown.runs.length === 1")
    assert shown_figures(page) == figures_of(read_run(recorded / "whole").trace)


# -- messages


def test_fifty_thousand_spans(page: Page, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trace = Trace("simulated: eight ranks")
    kinds = ("compute", "compute", "send", "compute", "recv")
    for i in range(MANY):
        rank, at = i % 8, i // 8
        kind = kinds[at % 5]
        peer = str((rank + {"send": 1, "recv": -1}.get(kind, 0)) % 8) if kind in ("send", "recv") else ""
        start_s = at * 1e-4 + rank * 1e-5
        trace.add(Span(str(rank), kind, f"{kind} {at}", start_s, start_s + 7e-5, 4096 if peer else 0, peer))
    write_chrome_trace(tmp_path / "many.json", [trace])
    page.goto(f"{url}/ui")
    choose(page, "#open", tmp_path / "many.json")
    page.wait_for_function("n => shown.runs.length && shown.runs[0].spans.length === n", arg=MANY)
    assert page.evaluate("shown.runs[0].lanes.size") == 8
    page.evaluate("frameTimes.length = 0")
    for key in ("+", "ArrowRight") * 12 + ("-", "ArrowLeft") * 12:
        page.keyboard.press(key)
        page.evaluate("new Promise(requestAnimationFrame)")
    frames = sorted(page.evaluate("frameTimes"))
    assert len(frames) >= 24, "each key is drawn"
    with capsys.disabled():
        half, worst = frames[len(frames) // 2], frames[-1]
        print(f"\n{MANY:,} spans: a frame takes {half:.1f} ms, the worst of {len(frames)} {worst:.1f} ms")
    drawn = page.evaluate(
        """() => { showWhole(); let n = 0; const fill = CanvasRenderingContext2D.prototype.fillRect;
          CanvasRenderingContext2D.prototype.fillRect = function (...at) { n += 1; fill.apply(this, at); };
          drawLanes(); CanvasRenderingContext2D.prototype.fillRect = fill; return n; }"""
    )
    assert drawn <= 1.5 * 1280 * 16, "spans narrower than a pixel are drawn together"
    assert drawn > 1000
    assert page.evaluate("shown.runs[0].messages.pairs.length") == MANY // 5, "each send has its receive"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Page, url: str, ask: Ask, simulated: Path, scheme: str):
    page.emulate_media(color_scheme=scheme)
    ask(1)
    opened(page, url, 1)
    choose(page, "#beside", simulated)
    page.wait_for_function("shown.runs.length === 2")
    page.click("#lanes-more summary")
    page.click("#requests tbody button >> nth=0")
    page.wait_for_selector("#why-body table[data-sum]")
    page.click("#claims summary >> nth=0")
    assert axe_finds(page) == []


def test_the_scoreboard_can_be_searched(page: Page, url: str):
    page.goto(f"{url}/ui")
    page.wait_for_selector("#claims details")
    assert "Of 78 systems" in page.inner_text("#claims-count")
    page.fill("#claims-find", "sarathi")
    page.wait_for_function("document.querySelectorAll('#claims details').length === 1")
    page.click("#claims summary")
    page.wait_for_selector("#claims tbody tr")
    assert "Sarathi" in page.inner_text("#claims summary")
