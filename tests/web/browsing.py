"""What tests of the page do in it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Page = Any
AXE = Path(__file__).with_name("axe.js")


@contextmanager
def clean_page(browser: Any, url: str, *, forgives: str | None = None) -> Iterator[Page]:
    """A page that must not say anything in its console or ask anybody else. forgives: what it may say."""
    said: list[str] = []
    asked: list[str] = []
    # Playwright waits by eval, which the page's policy forbids; one test of each view goes without.
    context = browser.new_context(
        color_scheme="light", viewport={"width": 1280, "height": 900}, bypass_csp=True
    )
    context.set_default_timeout(60_000)
    made = context.new_page()
    made.on(
        "console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None
    )
    made.on("pageerror", lambda error: said.append(str(error)))
    made.on("request", lambda request: asked.append(request.url))
    yield made
    context.close()
    assert [each for each in said if forgives is None or forgives not in each] == []
    others = [each for each in asked if urlsplit(each).netloc not in ("", urlsplit(url).netloc)]
    assert others == []


def choose(page: Page, button: str, file: Path | list[Path]) -> None:
    with page.expect_file_chooser() as chooser:
        page.click(button)
    chooser.value.set_files(file)


def axe_finds(page: Page) -> list[str]:
    """What is wrong for those who do not see the page, or see it otherwise."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [f"{v['id']}: {v['help']}: {n['html'][:200]}" for v in found["violations"] for n in v["nodes"]]


@contextmanager
def started(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A verb that serves the page, and where."""
    asked = [sys.executable, "-m", "lightwork", *words]
    # A job in the background ignores Ctrl-C, and so do its children, unless somebody listens when they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        signal.signal(signal.SIGINT, before)
        try:
            assert process.stderr is not None
            said = ""
            for line in process.stderr:
                said += line
                if found := re.search(r"(http://127\.0\.0\.1:\d+)/ui", line):
                    yield process, found[1]
                    break
            else:
                raise AssertionError(said)
        finally:
            process.kill()
