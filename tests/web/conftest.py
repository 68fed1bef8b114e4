"""A real server with its page, on the built-in model, and someone who sends it requests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from browsing import clean_page

from lightwork.serve.http.main import BackgroundServer, Loaded, load
from lightwork.serve.plan import Plan
from lightwork.web.routes import add_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
Ask = Callable[[int], None]
MODEL = "tiny:llama"


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    made = load(Plan(model=MODEL, max_len=256))
    add_page(made)
    return made


@pytest.fixture(scope="module")
def url(loaded: Loaded) -> Iterator[str]:
    with BackgroundServer(loaded) as address:
        yield address


@pytest.fixture
def ask(url: str) -> Ask:
    """ask(n): send n requests at once and read their answers."""

    def send(i: int) -> None:
        body = {"model": MODEL, "prompt": f"{i} and {i}", "max_tokens": 12, "ignore_eos": True}
        httpx.post(f"{url}/v1/completions", json=body, timeout=120).raise_for_status()

    def ask_all(n: int) -> None:
        with ThreadPoolExecutor(n) as pool:
            list(pool.map(send, range(n)))

    return ask_all


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Of one module only: while playwright is open, no other event loop runs on this thread."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH: apt-get install chromium")
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    """A page that has said nothing in its console and has asked nobody else, when the test ends."""
    with clean_page(browser, url) as made:
        yield made
