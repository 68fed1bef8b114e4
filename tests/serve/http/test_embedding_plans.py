"""Embeddings of every plan that serves: the vectors of one process, beside replies, and none lost."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from numpy.typing import NDArray

from lightwork.claims._variants import EIGHT, eight, lessons
from lightwork.models import resolve
from lightwork.models.pooling import FIELDS
from lightwork.runtime import heartbeat
from lightwork.serve import embedding, remote
from lightwork.serve.http.main import BackgroundServer, Loaded, load
from lightwork.serve.plan import Plan
from lightwork.testing import tiny_checkpoint

pytestmark = [
    pytest.mark.multiproc,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux"),
]
NAME = "tiny"
TEXTS = [[*range(60, 90)], [7], [i % 200 for i in range(250)], [9, 8], [*range(100)]]
BODY = {"model": NAME, "prompt": "Hello", "max_tokens": 60, "temperature": 0, "seed": 1, "ignore_eos": True}

Vectors = NDArray[np.float64]


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that asks for the first state, the mean of all and the last."""
    top = tmp_path_factory.mktemp("pooled") / "model"
    shutil.copytree(checkpoint("llama"), top)
    (top / "1_Pooling").mkdir()
    told = ", ".join(f'"{FIELDS[name]}": true' for name in ("cls", "mean", "lasttoken"))
    (top / "1_Pooling" / "config.json").write_text("{" + told + "}")
    return top


@contextmanager
def served(plan: Plan) -> Iterator[tuple[Loaded, str]]:
    loaded = load(plan, name=NAME)
    with BackgroundServer(loaded) as url:
        yield loaded, url


def embedded(url: str, texts: Sequence[Sequence[int]] = TEXTS, model: str = NAME) -> Vectors:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        made = client.embeddings.create(model=model, input=[[*text] for text in texts])
    assert made.usage.prompt_tokens == sum(map(len, texts))
    return np.array([each.embedding for each in made.data])


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Vectors]:
    """What one process says, by what computes: the compiled step, or torch."""
    found = {}
    for name in ("compiled", "torch"):
        with pytest.MonkeyPatch.context() as patch:
            if name == "torch":
                patch.setattr("lightwork.serve.opening.compiles", lambda place: False)
            with served(Plan(model=str(folder), max_len=256)) as (_, url):
                found[name] = np.concatenate([embedded(url, [text]) for text in TEXTS])
    assert np.abs(found["torch"] - found["compiled"]).max() < 2e-4
    assert np.allclose(np.linalg.norm(found["torch"], axis=1), 1)
    return found


PLANS = [
    ({"depth": 2}, "compiled", ["engine"]),
    ({"use": ("Replicas(copies=2)",)}, "compiled", ["engine 0", "engine 1"]),
    ({"use": ("PrefillDecode()",)}, "compiled", ["engine 0"]),
    ({"tp": 2}, "torch", ["engine"]),
    ({"pp": 2}, "torch", ["engine"]),
    ({"tp": 2, "use": ("Sliding(window=2)",)}, "torch", ["engine"]),
]


@pytest.mark.parametrize(("plan", "by", "ranks"), PLANS, ids=str)
def test_vectors_are_those_of_one_process_and_replies_stay_as_they_are(
    folder: Path,
    alone: dict[str, Vectors],
    monkeypatch: pytest.MonkeyPatch,
    plan: dict[str, Any],
    by: str,
    ranks: list[str],
) -> None:
    """Six clients at once, and texts in several parts. Engines get texts as they get prompts."""
    monkeypatch.setattr(embedding, "PART", 64)
    with (
        served(Plan(model=str(folder), max_len=256, **plan)) as (loaded, url),
        ThreadPoolExecutor(12) as callers,
    ):
        said = httpx.post(f"{url}/v1/completions", json=BODY, timeout=120).json()["choices"][0]["text"]
        replies = [
            callers.submit(httpx.post, f"{url}/v1/completions", json=BODY, timeout=120) for _ in range(6)
        ]
        for vectors in callers.map(embedded, [url] * 6):
            assert np.abs(vectors - alone[by]).max() < 1e-5
        assert [reply.result().json()["choices"][0]["text"] for reply in replies] == [said] * 6
        spans = [span for span in loaded.trace.spans if span.kind == "embed" and span.args]
        assert sum(span.args["texts"] for span in spans if span.args) == 6 * len(TEXTS)
        assert len(spans) < 6 * len(TEXTS)  # short ones are computed together
        assert sorted({span.rank for span in spans}) == ranks


def until(loaded: Loaded, read: Callable[[Any], bool]) -> None:
    """Return when that is so of its engine."""

    async def ask() -> None:
        while not await loaded.service.ask(read):
            pass

    asyncio.run(ask())


def waits(engine: Any) -> bool:
    """Whether the first engine of a fleet was given texts that it has not embedded."""
    return bool(engine.engines[0]._texts)


def test_texts_of_an_engine_that_is_killed_are_embedded_by_another(
    folder: Path, alone: dict[str, Vectors], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by the first that is back, if there is no other."""
    monkeypatch.setattr(remote, "BACKOFF_S", 0.01)
    with (
        served(Plan(model=str(folder), max_len=256, use=("Replicas(copies=2)",))) as (loaded, url),
        ThreadPoolExecutor(6) as callers,
    ):
        engine: Any = loaded.service.engine
        for num_victims in (1, 2):
            until(loaded, lambda engine: all(each.serving for each in engine.engines))
            victims = [each.child.process.pid for each in engine.engines[:num_victims]]
            for victim in victims:
                os.kill(victim, signal.SIGSTOP)
            asked = [callers.submit(embedded, url) for _ in range(6)]
            until(loaded, waits)
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
            for each in asked:
                assert np.abs(each.result() - alone["compiled"]).max() < 1e-5
            assert [member.requests for member in engine.members] == [0, 0]


@pytest.mark.slow
def test_a_text_that_loses_three_engines_may_be_the_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BACKOFF_S", 0.01)
    with (
        served(Plan(model=str(folder), max_len=256, use=("Replicas(copies=1)",))) as (loaded, url),
        ThreadPoolExecutor(1) as callers,
    ):
        (engine,) = loaded.service.engine.engines  # type: ignore[union-attr]
        killed, returned = list[int](), engine.returned

        def kill() -> None:
            returned()
            killed.append(engine.child.process.pid)
            os.kill(killed[-1], signal.SIGKILL)

        engine.returned = kill
        os.kill(engine.child.process.pid, signal.SIGSTOP)
        asked = callers.submit(embedded, url)
        until(loaded, waits)
        os.kill(engine.child.process.pid, signal.SIGKILL)
        with pytest.raises(openai.InternalServerError, match="its process ended"):
            asked.result()
        assert len(killed) == 2


@pytest.mark.slow
def test_an_engine_that_hangs_is_killed_and_its_texts_are_not_lost(
    folder: Path, alone: dict[str, Vectors], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.2)
    with served(Plan(model=str(folder), max_len=256, use=("Replicas(copies=2)",))) as (loaded, url):
        engine: Any = loaded.service.engine
        os.kill(engine.engines[0].child.process.pid, signal.SIGSTOP)
        assert np.abs(embedded(url, TEXTS * 2) - np.tile(alone["compiled"], (2, 1))).max() < 1e-5
        assert [span.kind for span in loaded.trace.spans if span.kind == "hung"] == ["hung"]


def test_texts_of_a_client_that_leaves_are_forgotten_everywhere(folder: Path) -> None:
    with served(Plan(model=str(folder), max_len=256, use=("Replicas(copies=2)",))) as (loaded, url):
        engine: Any = loaded.service.engine
        stopped = engine.engines[0].child.process.pid
        os.kill(stopped, signal.SIGSTOP)
        body = {"model": NAME, "input": TEXTS * 4}

        async def leave() -> None:
            async with httpx.AsyncClient(base_url=url, timeout=60) as http:
                asked = asyncio.ensure_future(http.post("/v1/embeddings", json=body))
                while not await loaded.service.ask(waits):
                    pass
                asked.cancel()

        asyncio.run(leave())
        until(loaded, lambda engine: not any(each._texts for each in engine.engines))
        os.kill(stopped, signal.SIGCONT)
        assert [member.requests for member in engine.members] == [0, 0]
        assert embedded(url).shape == (len(TEXTS), 96)


@pytest.mark.parametrize("grid", [{"tp": 2}, {"pp": 2}], ids=str)
def test_texts_of_ranks_that_are_lost_end_with_an_error(folder: Path, grid: dict[str, int]) -> None:
    """Which says so; and who comes later is told that no engine is left."""
    with (
        served(Plan(model=str(folder), max_len=256, **grid)) as (loaded, url),
        ThreadPoolExecutor(3) as callers,
    ):
        model: Any = loaded.model
        victim, body = model.children[1].process.pid, {"model": NAME, "input": TEXTS}
        os.kill(victim, signal.SIGSTOP)
        asked = [callers.submit(httpx.post, f"{url}/v1/embeddings", json=body) for _ in range(3)]
        until(loaded, lambda engine: bool(model._asked))
        os.kill(victim, signal.SIGKILL)
        assert [each.result().status_code for each in asked] == [503] * 3
        late = httpx.post(f"{url}/v1/embeddings", json=body)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "NotReadyError")


@pytest.fixture
def gated(folder: Path) -> Iterator[tuple[Loaded, str, threading.Event]]:
    """A server of one process whose texts wait for the event, once one of them has begun."""
    with served(Plan(model=str(folder), max_len=256)) as (loaded, url):
        model: Any = loaded.model
        states, go_on = model.states, threading.Event()

        def waiting(*args: object) -> object:
            assert go_on.wait(60)
            return states(*args)

        model.states = waiting
        yield loaded, url, go_on
        go_on.set()


def begun(loaded: Loaded, texts: int) -> None:
    until(loaded, lambda engine: engine._embedding._works and len(engine._embedding._asked) == texts)


def test_a_draining_server_embeds_what_it_has_accepted(
    gated: tuple[Loaded, str, threading.Event], alone: dict[str, Vectors]
) -> None:
    loaded, url, go_on = gated
    with ThreadPoolExecutor(2) as callers:
        asked = callers.submit(embedded, url)
        begun(loaded, 0)
        drained = callers.submit(asyncio.run, loaded.service.drain())
        while loaded.service.ready:
            threading.Event().wait(0.005)
        late = httpx.post(f"{url}/v1/embeddings", json={"model": NAME, "input": "x"})
        assert late.status_code == 503
        assert not drained.done()
        go_on.set()
        assert np.abs(asked.result() - alone["compiled"]).max() < 1e-5
        drained.result()


def test_texts_that_wait_when_a_server_stops_are_answered(gated: tuple[Loaded, str, threading.Event]) -> None:
    loaded, url, go_on = gated
    body = {"model": NAME, "input": TEXTS}
    with ThreadPoolExecutor(2) as callers:
        asked = callers.submit(httpx.post, f"{url}/v1/embeddings", json=body)
        begun(loaded, 0)
        closing = callers.submit(loaded.service.close)
        assert asked.result().status_code == 503
        assert "shutting down" in asked.result().json()["error"]["message"]
        go_on.set()
        closing.result()


def test_a_step_waits_for_a_part_of_a_text_at_most(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies go on in between, and what its client does not want any more is not computed to its end."""
    monkeypatch.setattr(embedding, "PART", 64)
    with served(Plan(model=str(folder), max_len=256)) as (loaded, url):
        model: Any = loaded.model
        states, parts, left = model.states, [], threading.Event()

        def counted(*args: object) -> object:
            parts.append(args)
            if len(parts) == 2:
                for _ in range(3):
                    assert httpx.post(f"{url}/v1/completions", json=BODY, timeout=60).status_code == 200
                left.set()
                assert gone.wait(60)
            return states(*args)

        model.states, gone = counted, threading.Event()

        async def leave() -> None:
            async with httpx.AsyncClient(base_url=url, timeout=60) as http:
                asked = asyncio.ensure_future(
                    http.post("/v1/embeddings", json={"model": NAME, "input": TEXTS[2]})
                )
                assert await asyncio.to_thread(left.wait, 60)
                asked.cancel()

        asyncio.run(leave())
        until(loaded, lambda engine: not loaded.service._embedded)
        gone.set()
        until(loaded, lambda engine: not engine._embedding._works)
        assert len(parts) == 2  # of four


def test_a_pass_that_fails_is_an_error_with_its_reason_in_the_log(
    folder: Path, alone: dict[str, Vectors], caplog: pytest.LogCaptureFixture
) -> None:
    with served(Plan(model=str(folder), max_len=256)) as (loaded, url):
        model: Any = loaded.model
        states = model.states

        def failing(*args: object) -> object:
            model.states = states
            raise ValueError("boom")

        model.states = failing
        body = {"model": NAME, "input": TEXTS}
        failed = httpx.post(f"{url}/v1/embeddings", json=body, timeout=60)
        assert (failed.status_code, failed.json()["error"]["type"]) == (500, "server_error")
        assert "boom" not in failed.text
        assert np.abs(embedded(url) - alone["compiled"]).max() < 1e-5
    assert [str(r.exc_info[1]) for r in caplog.records if r.exc_info] == ["boom"]


def test_fine_tunes_that_share_blocks_embed_as_they_do_alone(tmp_path: Path) -> None:
    base = resolve("tiny:llama")
    eight(base, tmp_path, lessons)
    use = (f"Blocks(folder={str(tmp_path)!r})",)
    whole = next(name for name in EIGHT if (tmp_path / name / "config.json").is_file())
    with served(Plan(use=use, max_len=128, threads=1)) as (_, url):
        shared = [embedded(url, TEXTS[:2], name) for name in (NAME, whole)]
    for vectors, folder in zip(shared, (base, tmp_path / whole), strict=True):
        with served(Plan(model=str(folder), max_len=128, threads=1)) as (_, url):
            assert np.abs(vectors - embedded(url, TEXTS[:2])).max() < 2e-4
    assert np.abs(shared[0] - shared[1]).max() > 1e-3


@pytest.mark.parametrize("router", [(), ("Replicas(copies=1)",)], ids=str)
def test_models_that_take_turns_are_not_embedded_with(tmp_path: Path, router: tuple[str, ...]) -> None:
    """Their weights come and go with the steps; also where another process says so."""
    own, top = tiny_checkpoint(tmp_path / "own"), tmp_path / "experts"
    tiny_checkpoint(top / "other", seed=1)
    use = (f"Experts(folder={str(top)!r})", *router)
    with served(Plan(model=str(own), max_len=128, use=use)) as (_, url):
        reply = httpx.post(f"{url}/v1/embeddings", json={"model": NAME, "input": "x"}, timeout=60)
        assert reply.status_code == 400
        assert "take turns" in reply.json()["error"]["message"]
        assert httpx.post(f"{url}/v1/completions", json=BODY, timeout=60).status_code == 200
