"""Every two techniques together: the texts of each request alone, nothing lost, all blocks returned.

Engines behind a router share this process here; that they may be processes is test_deployment's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("torch")

from lightwork.decode.constraints import Constraint
from lightwork.decode.sampling import Sampling
from lightwork.errors import SpecError
from lightwork.memory.residencies.belady import Belady
from lightwork.memory.residencies.lru import LRU
from lightwork.models import read_shape
from lightwork.models.peft import write_adapter
from lightwork.models.prompt_tokens import FILE, PromptTokens, write_prompt_tokens
from lightwork.models.spec import ModelSpec
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.engine import Engine
from lightwork.serve.fleet import Fleet
from lightwork.serve.opening import open_engine, open_one
from lightwork.serve.pairs import PLACES, Pair, combined, pairs
from lightwork.serve.plan import Plan
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load
from lightwork.serve.simulated import open_simulated
from lightwork.techniques import parse
from lightwork.testing import random_adapter, tiny_checkpoint

MAX_LEN, SLOTS = 128, 3
NAMES = ("one", "two")
FORM = Constraint(kind="regex", text="colours: [a-d]{90}")
ACTING = {
    "ByModel": "ByModel(max_steps=5)",
    "ContextSwitch": "ContextSwitch(policy=RoundRobin(quantum=3), places=2)",
    "FastSwitch": "FastSwitch(every=3, stay=0.3)",
    "CoServe": "CoServe(slo_s=0.02)",
    "Flover": "Flover(lane=32)",
    "RelaxedLossy": "RelaxedLossy(beta=1)",
    "NanoFlow": "NanoFlow(inner=Sarathi(chunk=48), output=20)",
    "Sarathi": "Sarathi(chunk=48)",
    "SplitFuse": "SplitFuse(tokens=48)",
    "StaticBatches": "StaticBatches(size=4)",
    "TimeSharing": "TimeSharing(every=4)",
    "BlockGroups": "BlockGroups(size=2)",
    "Slots": f"Slots(max_seqs={SLOTS})",
    "HostMemory": "HostMemory(gb=0.01)",
    "Quant": "Quant(bits=8, group=32, kv_bits=32)",
}
"""Techniques as small as the load, so that they act on it; the others as they are by default."""


@dataclass(frozen=True)
class Place:
    """A model with two adapters and two other models, and something to learn."""

    folder: Path

    @property
    def model(self) -> str:
        return str(self.folder / "own")

    @property
    def spec(self) -> ModelSpec:
        return read_shape(self.model)

    def kv_bytes(self, dtype: str, block_size: int) -> int:
        """Two blocks of the compiled step for each slot, or as many tokens: less than the load needs."""
        return SLOTS * MAX_LEN // block_size * self.spec.kv_bytes_per_token(dtype) * block_size

    def technique(self, name: str) -> Any:
        if name == "Lora":
            return parse(f"Lora(folder='{self.folder}/adapters')")
        if name == "LoraTuning":
            return parse(
                f"LoraTuning(data='{self.folder}/examples.jsonl', out='{self.folder}/tuned', rank=2)"
            )
        if name == "Experts":
            return parse(f"Experts(folder='{self.folder}/experts', gb={2.5 * self.expert_bytes() / 1e9})")
        if name == "Blocks":
            return parse(f"Blocks(folder='{self.folder}/experts')")
        if name in ("DraftModel", "Pearl", "Cascade", "EasySpec"):
            drafts = f"DraftModel(model='{self.folder}/own', k=3)"
            around = {
                "DraftModel": drafts,
                "Pearl": f"Pearl(inner={drafts})",
                "Cascade": f"Cascade(then={drafts})",
                "EasySpec": f"EasySpec(inner={drafts})",
            }
            return parse(around[name])
        return parse(ACTING.get(name, name))

    def pair(self, pair: Pair) -> tuple[Any, ...]:
        return combined(pair.field, self.technique(pair.first), self.technique(pair.second))

    def expert_bytes(self) -> int:
        _, model, _ = open_engine(Plan(model=self.model), Kernel(WallClock()))
        model.close()
        return model.nbytes


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("pairs")
    for i, name in enumerate(("own", *(f"experts/{name}" for name in NAMES))):
        (folder / name).mkdir(parents=True)
        tiny_checkpoint(folder / name, seed=i, num_hidden_layers=2)
    made = Place(folder)
    wide = np.random.default_rng(0).normal(0, 0.2, (2, made.spec.hidden_size)).astype(np.float32)
    said = PromptTokens(wide, np.array([[0.5, 0.2], [0.4, 0.1]]))
    write_prompt_tokens(folder / "own" / FILE, said)
    for i, name in enumerate(NAMES):
        write_adapter(folder / "adapters" / name, random_adapter(made.spec, name, i), made.spec)
    lines = [json.dumps({"text": "many hands make light work " * 2}) + "\n"] * 400
    (folder / "examples.jsonl").write_text("".join(lines), encoding="utf-8")
    return made


def load(models: Sequence[str]) -> list[Request]:
    """Prompts of 40 to 90 tokens, every other one behind a block that they share; one in three is sampled,
    one in four has a form to keep to, longer than it gets."""
    rng = np.random.default_rng(0)
    shared = rng.integers(0, 250, 66).tolist()
    return [
        Request(
            prompt=tuple(shared * (i % 2) + rng.integers(0, 9, 8 + i if i % 2 else 40 + 2 * i).tolist()),
            max_tokens=20 + i % 8,
            sampling=Sampling(temperature=0.8 if i % 3 == 2 else 0.0, seed=i),
            tenant="ab"[i % 2],
            model=models[i % len(models)],
            constraint=FORM if i % 4 == 3 else None,
        )
        for i in range(12)
    ]


def open_real(place: Place, use: Sequence[Any], **settings: Any) -> tuple[Engine | Fleet, list[Any]]:
    kernel = Kernel(WallClock(), trace=Trace("real: cpu"))
    plan = Plan(model=place.model, max_len=MAX_LEN, threads=1, use=use, **settings)
    chosen = plan.techniques()
    # Whether drafts pay is not measured here: they all get rows.
    parts: dict[str, Any] = {"predict": lambda step: 1.0} if "proposer" in chosen else {}
    router = chosen.get("router")
    if router is None:
        engine, model, _ = open_one(plan, kernel, **parts)
        return engine, [model]
    parts["ids"], plan = count(), replace(plan, use=[one for one in use if one is not router])
    opened = [open_one(plan, kernel, name=f"engine {i}", **parts) for i in range(len(router.seats()))]
    return Fleet([engine for engine, *_ in opened], router), [model for _, model, _ in opened]


def serve(engine: Engine | Fleet, requests: Sequence[Request]) -> list[list[int]]:
    """The texts, if none was lost and nothing is left behind."""
    seqs: list[Seq] = run_load(engine, [0.0] * len(requests), requests)
    assert [seq.finished for seq in seqs] == ["length"] * len(requests)
    for one in engine.engines if isinstance(engine, Fleet) else [engine]:
        one.kv.check()
        assert one.kv.free == one.kv.total
    return [seq.tokens[seq.prompt_len :] for seq in seqs]


@pytest.fixture(scope="module")
def alone(place: Place) -> Callable[..., list[list[int]]]:
    """What each request is answered by itself, with nothing shared, in a precision, by these models."""

    @cache
    def answer(*names: str) -> list[list[int]]:
        engine, (model,) = open_real(place, [place.technique(name) for name in names], prefix_cache=False)
        texts = [serve(engine, [request])[0] for request in load(asked(model))]
        model.close()
        return texts

    return answer


def asked(model: Any) -> list[str]:
    return ["", *(model.variants[name] for name in NAMES if name in model.variants)]


@dataclass
class Noting:
    """A residency that notes what is used."""

    inner: LRU = field(default_factory=LRU)
    used: list[str] = field(default_factory=list)

    @property
    def ring(self) -> None:
        return None

    def init(self, order: Sequence[str]) -> dict[str, int]:
        return self.inner.init(order)

    def use(self, state: dict[str, int], name: str) -> Sequence[str]:
        self.used.append(name)
        return self.inner.use(state, name)

    def victim(self, state: dict[str, int], among: Collection[str]) -> str:
        return self.inner.victim(state, among)


def knowing(use: Sequence[Any], run: Callable[[Sequence[Any]], object]) -> Sequence[Any]:
    """The techniques, where Belady is among them with the trace of a run."""
    if getattr(use[0], "residency", None) != Belady():
        return use
    noting = Noting()
    run([replace(use[0], residency=noting)])
    return [replace(use[0], residency=Belady(trace=tuple(noting.used)))]


PAIRS = pytest.mark.parametrize("pair", pairs(), ids=lambda pair: f"{pair.first}-{pair.second}")


@PAIRS
def test_the_texts_of_a_pair_are_those_of_requests_alone(
    pair: Pair, place: Place, alone: Callable[..., list[list[int]]]
) -> None:
    def run(use: Sequence[Any]) -> list[list[int]]:
        engine, models = open_real(place, use, kv_bytes=place.kv_bytes("float32", 64))
        texts = serve(engine, load(asked(models[0])))
        for model in models:
            model.close()
        return texts

    use = place.pair(pair)
    if "real" in pair.refused:
        with pytest.raises(SpecError):
            run(use)
        return
    changing = [name for name in ("Quant", "Lora", "Experts", "Blocks") if name in (pair.first, pair.second)]
    assert run(knowing(use, run)) == alone(*changing)


@PAIRS
def test_a_pair_serves_a_simulated_load_to_its_end(pair: Pair, place: Place) -> None:
    def run(use: Sequence[Any]) -> None:
        kv_bytes = place.kv_bytes("bfloat16", 16)
        plan = Plan(model=place.model, on=PLACES["simulated"], max_len=MAX_LEN, kv_bytes=kv_bytes, use=use)
        engine, _ = open_simulated(plan, Kernel(trace=Trace("simulated")))
        varied = {"Lora", "Experts", "Blocks"} & {pair.first, pair.second}
        serve(engine, load(["", *NAMES] if varied else [""]))

    use = place.pair(pair)
    if "simulated" in pair.refused:
        with pytest.raises(SpecError):
            run(use)
        return
    run(knowing(use, run))


def test_the_load_is_one_that_techniques_act_on(place: Place, alone: Callable[..., list[list[int]]]) -> None:
    """Otherwise the texts would be the same for no reason."""

    def seen(*names: str) -> set[str]:
        kv_bytes = place.kv_bytes("float32", 64)
        engine, (model,) = open_real(place, [place.technique(name) for name in names], kv_bytes=kv_bytes)
        requests = load(asked(model))
        seqs = run_load(engine, [0.0] * len(requests), requests)
        model.close()
        assert engine.kernel.trace is not None
        found = {span.kind for span in engine.kernel.trace.spans}
        found |= {"cached"} if any(seq.cached for seq in seqs) else set()
        return found | ({"accepted"} if any(seq.accepted for seq in seqs) else set())

    assert {"preempt", "cached"} <= seen()
    for name in ("Ngram", "DraftModel", "Pearl", "Cascade", "Forced"):
        assert "accepted" in seen(name)
    assert {"fetch", "preempt"} <= seen("FastSwitch", "HostMemory")
    assert "switch" in seen("Experts")
    assert "update" in seen("LoraTuning", "TimeSharing")
    plain = alone()
    for name in ("Lora", "Experts", "Blocks", "Quant"):
        assert alone(name) != plain
