"""Pictures of what users see, for the docs: verbs in a terminal as SVG, the page as PNG.

    .venv/bin/python scripts/screenshots.py            # writes docs/pictures/

Terminal pictures are what the verbs really print, in a pseudo-terminal of 120 columns. The page is that of a
server with requests under way, in a headless Chromium (found on PATH).
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from lightwork.serve.http.main import BackgroundServer, load
from lightwork.serve.plan import Plan
from lightwork.web.routes import add_page

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
COLUMNS = 120
VERBS = {
    "demo": ["demo"],
    "technique": ["techniques", "Sarathi"],
    "claims": ["claims", "sarathi"],
    "agent": ["agent", "--tools", "world:2"],
    "learn": ["learn", "fit", "bars", "--model", "BSC"],
}
GAME = {
    "game": "numbers",
    "rounds": 1000,
    "thinks_s": 1.0,
    "population": {
        "total_num": 20_000,
        "distributions": [
            {
                "name": "thinking",
                "categories": [
                    {"category_name": f"{level} steps", "percentage": 25, "attributes": {"level": level}}
                    for level in (0, 1, 2, 3)
                ],
            }
        ],
    },
}
"""Who plays while the page of a population is drawn."""


def printed(arguments: list[str]) -> str:
    """What `lightwork ...` writes to a terminal, with its escape sequences."""
    master, slave = pty.openpty()
    environment = os.environ | {"COLUMNS": str(COLUMNS), "LINES": "50", "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "lightwork", *arguments]
    process = subprocess.Popen(command, stdout=slave, stderr=slave, stdin=slave, env=environment)
    os.close(slave)
    out = b""
    while True:
        ready, _, _ = select.select([master], [], [], 0.1)
        if ready:
            try:
                out += os.read(master, 1 << 16)
            except OSError:  # the other end is closed
                break
        elif process.poll() is not None:
            break
    os.close(master)
    if process.wait() != 0:
        raise SystemExit(f"lightwork {' '.join(arguments)} failed:\n{out.decode()}")
    return out.decode().replace(f"{ROOT}/", "")


def screen(text: str) -> str:
    """The lines that stay: a bar that was drawn over is gone."""
    lines = [line.rsplit("\r", 1)[-1] for line in text.replace("\r\n", "\n").split("\n")]
    kept = [re.sub(r"\x1b\[(?:\?25[lh]|\d*[AK]|2K)", "", line) for line in lines]
    return "\n".join(kept).strip("\n")


def terminal_picture(name: str, arguments: list[str]) -> None:
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    console.print(Text(f"$ lightwork {' '.join(arguments)}", style="bold"))
    console.print(Text.from_ansi(screen(printed(arguments))))
    svg = console.export_svg(title="lightwork", theme=MONOKAI, unique_id=name)
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # they are fetched from another host
    (PICTURES / f"{name}.svg").write_text(svg, encoding="utf-8")


def page_pictures() -> None:
    """The page of a server that has answered two dozen requests, in both themes."""
    from playwright.sync_api import sync_playwright

    loaded = load(Plan(model="tiny:llama"), keep_spans=None)
    add_page(loaded)
    with BackgroundServer(loaded) as url, sync_playwright() as started:
        with ThreadPoolExecutor(8) as clients:
            for done in clients.map(partial(ask, url), range(24)):
                done.raise_for_status()
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for theme in ("light", "dark"):
            page = browser.new_page(color_scheme=theme, viewport={"width": 1280, "height": 1500})
            page.goto(f"{url}/ui")
            page.wait_for_selector("#requests tbody button")
            page.click("#requests tbody button >> nth=0")
            page.wait_for_selector("#why-body table[data-sum]")
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=PICTURES / f"page-{theme}.png")
            page.close()
        browser.close()


def population_picture() -> None:
    """The page of a population on two processes, one agent of which is looked at."""
    from playwright.sync_api import sync_playwright

    with TemporaryDirectory() as folder, sync_playwright() as started:
        game = Path(folder) / "game.json"
        game.write_text(json.dumps(GAME), encoding="utf-8")
        command = [sys.executable, "-m", "lightwork", "simulate", str(game), "--place", "process:2", "--page"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        try:
            assert process.stderr is not None
            url = next(line.split()[0] for line in process.stderr if "/ui" in line)
            browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(color_scheme="light", viewport={"width": 1280, "height": 1250})
            page.goto(url)
            page.click("#agents-more summary")
            page.wait_for_selector("#agents-round-table tbody tr:nth-child(8)")
            page.click("#agents-listed tbody tr:nth-child(3)")
            page.wait_for_selector("#agents-one td")
            page.wait_for_selector("#agents-slowest tbody tr")
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=PICTURES / "agents-page.png")
            browser.close()
        finally:
            process.kill()
            process.wait()


def ask(url: str, number: int) -> httpx.Response:
    """One of many prompts, of its own length."""
    body = {"model": "tiny:llama", "prompt": "one two three " * (3 + 5 * number), "max_tokens": 12 + number}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=60)


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    page_pictures()
    population_picture()
    for name, arguments in VERBS.items():
        terminal_picture(name, arguments)


if __name__ == "__main__":
    main()
