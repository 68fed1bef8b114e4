"""A real server with its page, on the built-in model, and someone who sends it requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from lightwork.serve.http.main import BackgroundServer, Loaded, load
from lightwork.serve.plan import Plan
from lightwork.web.routes import add_page

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
