"""Fine-tunes served from one engine in the blocks that they share, each asked by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from lightwork import models
from lightwork.claims._variants import EIGHT, eight, lessons
from lightwork.decode.sampling import Sampling
from lightwork.errors import CheckpointError, RangeError, SpecError
from lightwork.models.held_out import read_held_out
from lightwork.models.model import Model
from lightwork.models.zoo import Zoo
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.compositions.blocks import Blocks
from lightwork.serve.engine import Engine
from lightwork.serve.http.main import BackgroundServer, load
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan
from lightwork.serve.schedulers.by_model import ByModel
from lightwork.serve.sequence import Request
from lightwork.serve.simulate import run_load
from lightwork.serve.simulated import open_simulated

pytestmark = pytest.mark.usefixtures("one_thread")
BASE = models.resolve("tiny:llama")
GREEDY = Sampling(temperature=0.0)
PROMPTS = {
    name: tuple(text.tokens[:24].tolist())
    for name, text in zip(["", *EIGHT], read_held_out(BASE) * 2, strict=False)
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("fine-tunes")
    eight(BASE, top, lessons)
    return top


def opened(folder: Path, *use: Any) -> tuple[Engine, Model]:
    plan = Plan(use=(Blocks(folder=str(folder)), *use), max_len=128, threads=1)
    engine, model, _ = open_engine(plan, Kernel(WallClock()))
    assert isinstance(engine, Engine)
    assert isinstance(model, Model)
    return engine, model


def answers(engine: Engine, *names: str) -> dict[str, list[int]]:
    requests = [Request(prompt=PROMPTS[n], max_tokens=12, sampling=GREEDY, model=n) for n in names]
    seqs = run_load(engine, [0.0] * len(names), requests)
    return {seq.request.model: seq.tokens[seq.prompt_len :] for seq in seqs}


def test_requests_of_all_models_in_one_batch_get_their_own_models_text(folder: Path) -> None:
    engine, model = opened(folder)
    mixed = answers(engine, "", *EIGHT)
    assert engine.steps < 20  # not one model after the other
    assert not isinstance(engine.scheduler, ByModel)
    alone = {}
    for name in ("", *EIGHT):
        own, _ = opened(folder)
        alone |= answers(own, name)
    assert mixed == alone
    assert len({tuple(text) for text in mixed.values()}) > 1
    assert [*model.variants] == EIGHT


def test_one_prompt_asked_of_two_models_shares_no_keys_and_values(folder: Path) -> None:
    engine, _ = opened(folder)
    first = [
        run_load(engine, [0.0], [Request(prompt=PROMPTS[""] * 2, max_tokens=2, sampling=GREEDY, model=name)])
        for name in ("whole-0", "whole-1", "whole-0")
    ]
    assert [seqs[0].cached > 0 for seqs in first] == [False, False, True]


def test_a_zoo_is_served_with_the_chains_that_are_registered_in_it(folder: Path, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path)
    zoo.add("", BASE)
    for name in ("adapter-0", "whole-0"):
        zoo.add(name, folder / name)
    zoo.register("half", (*zoo.chain("whole-0")[:9], *zoo.chain("")[9:]))
    engine, model = opened(tmp_path)
    assert [*model.variants] == ["adapter-0", "whole-0", "half"]
    whole = opened(folder)[0]
    assert answers(engine, "adapter-0", "whole-0") == answers(whole, "adapter-0", "whole-0")


def test_what_is_not_served_is_refused(folder: Path, tmp_path: Path) -> None:
    engine, _ = opened(folder)
    with pytest.raises(RangeError, match="nobody"):
        engine.submit(Request(prompt=(1, 2), max_tokens=2, model="nobody"))
    with pytest.raises(CheckpointError, match="no fine-tunes"):
        opened(tmp_path)
    with pytest.raises(SpecError, match="compiled"):
        opened(folder, "Quant(bits=8)")
    with pytest.raises(SpecError, match="leave one out"):
        opened(folder, f"Lora(folder='{folder}')")
    plan = Plan(model="shape:llama-2-7b", on="sim:a100x8", use=(Blocks(folder=str(folder)),))
    with pytest.raises(SpecError, match="for real only"):
        open_simulated(plan, Kernel())


def test_a_client_asks_a_fine_tune_by_its_name(folder: Path) -> None:
    loaded = load(Plan(use=(Blocks(folder=str(folder)),), max_len=128), name="own")
    with BackgroundServer(loaded) as url:
        listed = [m["id"] for m in httpx.get(f"{url}/v1/models").json()["data"]]
        assert listed == ["own", *EIGHT]
        body = {"model": "whole-1", "prompt": "tools:", "max_tokens": 3}
        assert httpx.post(f"{url}/v1/completions", json=body).status_code == 200
        assert httpx.post(f"{url}/v1/completions", json=body | {"model": "nobody"}).status_code == 404
