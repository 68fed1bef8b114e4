"""A real server on a tiny random checkpoint, shared by the session; tests leave it idle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest

from lightwork.serve.http.main import BackgroundServer, Loaded, load
from lightwork.serve.plan import Plan

NAME = "tiny"


@pytest.fixture(scope="session")
def loaded(checkpoint: Callable[..., Path]) -> Loaded:
    plan = Plan(model=str(checkpoint("llama")), max_len=256, max_waiting=600, max_seqs=64)
    return load(plan, name=NAME)


@pytest.fixture(scope="session")
def url(loaded: Loaded) -> Iterator[str]:
    with BackgroundServer(loaded) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as made:
        yield made


@pytest.fixture
def idle(loaded: Loaded) -> Iterator[Callable[[], None]]:
    """Call it to wait until nothing runs, and check that nothing was lost or leaked."""

    def check() -> None:
        import threading

        done = threading.Event()
        problems: list[BaseException] = []
        engine, kernel = loaded.service.engine, loaded.service.kernel

        async def wait() -> None:
            try:
                await engine.drained()
                engine.kv.check()
                assert engine.kv.free == engine.kv.total
                assert not engine.running
                assert not engine.waiting
            except BaseException as problem:
                problems.append(problem)
            finally:
                done.set()

        kernel.post(lambda: kernel.spawn(wait(), name="idle?"))
        assert done.wait(60), "the engine did not become idle"
        if problems:
            raise problems[0]

    yield check
    check()
