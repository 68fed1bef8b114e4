"""Drafts of a smaller model, before each step or beside it: plain decoding's text, and nothing left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import enumerate as enumerate_threads
from typing import Any

import pytest

pytest.importorskip("numba")

from lightwork.claims._iid_drafts import IidDrafts, said
from lightwork.claims.pearl import generate, tokens_per_step
from lightwork.decode.proposers import Drafter, Proposer, Target
from lightwork.decode.proposers.cascade import Both, Cascade
from lightwork.decode.proposers.draft_model import DraftModel, DraftRunner
from lightwork.decode.proposers.ngram import Ngram
from lightwork.decode.proposers.pearl import Edit, Pearl
from lightwork.decode.sampling import Sampling
from lightwork.errors import CapacityError, RangeError, SpecError
from lightwork.kernels.cpu.formats import PAGE
from lightwork.memory.kv import KVCache
from lightwork.models import load_compiled, resolve
from lightwork.models.held_out import read_held_out
from lightwork.models.precisions.stored import Stored
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.engine import Engine
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.opening import open_one
from lightwork.serve.plan import Plan
from lightwork.serve.schedulers import Step
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Limits, Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load
from lightwork.techniques import parse

SMALL, SAME = DraftModel(k=4), DraftModel(model="tiny:llama", k=4)
LOOKED_UP = Cascade(first=Ngram(k=4, n_min=4), then=SMALL)
SEQS, OUTPUT = 12, 90


def requests(temperature: float, num: int = SEQS, **sampling: Any) -> list[Request]:
    """Texts that neither model was trained on, to be continued."""
    return [
        Request(
            prompt=tuple(text.tokens[: len(text.tokens) // 2].tolist()),
            max_tokens=OUTPUT,
            sampling=Sampling(temperature=temperature, seed=i, **sampling),
        )
        for i, text in enumerate(read_held_out(resolve("tiny:llama"))[:num])
    ]


def serve(use: Iterable[object], load: list[Request], **settings: Any) -> tuple[Engine, list[Seq]]:
    """By engines to which rows cost nothing, so that drafts get all that a draft model can use."""
    plan = Plan(use=tuple(use), threads=1, max_len=512, **settings)
    kernel = Kernel(WallClock(), trace=Trace("real: cpu"))
    engine, model, _ = open_one(plan, kernel, predict=lambda step: 1.0)
    seqs = run_load(engine, [0.0] * len(load), load)
    engine.close()
    model.close()
    engine.kv.check()
    assert engine.kv.free == engine.kv.total
    return engine, seqs


def texts(seqs: Iterable[Seq]) -> list[list[int]]:
    return [seq.tokens[seq.prompt_len :] for seq in seqs]


@pytest.fixture(scope="module")
def plain() -> Callable[[float], tuple[int, list[list[int]]]]:
    """Steps and texts, one request after the other."""
    known: dict[float, tuple[int, list[list[int]]]] = {}

    def answer(temperature: float) -> tuple[int, list[list[int]]]:
        if temperature not in known:
            engine, seqs = serve([], requests(temperature), max_seqs=1, prefix_cache=False)
            known[temperature] = engine.steps, texts(seqs)
        return known[temperature]

    return answer


TEMPERATURES = pytest.mark.parametrize("temperature", [0.0, 1.0])


@TEMPERATURES
@pytest.mark.parametrize("use", [SMALL, Pearl(inner=SMALL), Pearl(inner=Ngram()), LOOKED_UP], ids=repr)
def test_a_thousand_tokens_are_those_of_plain_decoding_in_fewer_steps(
    use: Proposer, temperature: float, plain: Callable[[float], tuple[int, list[list[int]]]]
) -> None:
    steps, right = plain(temperature)
    engine, seqs = serve([use], requests(temperature), max_seqs=1, prefix_cache=False)
    assert sum(map(len, right)) > 1000
    assert texts(seqs) == right
    assert engine.steps < steps
    drafted, accepted = sum(seq.drafted for seq in seqs), sum(seq.accepted for seq in seqs)
    assert 0.2 < accepted / drafted < 1.0


@TEMPERATURES
def test_a_draft_model_that_is_the_target_is_always_right(temperature: float) -> None:
    """So every draft is taken whole, and beside a step as many tokens come as a draft has."""
    load = requests(temperature, num=2)
    for use, first, behind in ((SAME, 5, 5), (Pearl(inner=SAME), 1, 4)):
        engine, seqs = serve([use], load, max_seqs=1)
        assert all(0 < seq.accepted == seq.drafted for seq in seqs)
        assert engine.kernel.trace is not None
        spans = [span for span in engine.kernel.trace.spans if span.kind == "step" and span.args]
        emitted = [span.args["chunks"][0][-1] for span in spans if span.args]
        each = emitted[: len(emitted) // 2]
        assert sum(each) == OUTPUT
        assert each[0] == first
        assert set(each[1:-1]) == {behind}


STRAINED: dict[str, dict[str, Any]] = {
    "batched": {},
    "chunked": {"use": (Sarathi(chunk=64),)},
    "preempted": {"use": (Sarathi(chunk=96),), "kv_bytes": 5 << 20},
}


@pytest.mark.parametrize("how", STRAINED)
@pytest.mark.parametrize("use", [SMALL, Pearl(inner=SMALL), replace(SMALL, gb=1e-3), LOOKED_UP], ids=repr)
def test_drafts_go_with_batches_prefixes_chunks_and_preemption(
    how: str, use: Proposer, plain: Callable[[float], tuple[int, list[list[int]]]]
) -> None:
    settings = {**STRAINED[how]}
    engine, seqs = serve([*settings.pop("use", ()), use], requests(1.0) * 2, **settings)
    assert texts(seqs) == plain(1.0)[1] * 2
    assert any(seq.num_preempted for seq in seqs) == (how == "preempted")
    assert any(seq.cached for seq in seqs)
    assert sum(seq.accepted for seq in seqs) > 50
    drafter: Any = engine.proposer.then if isinstance(engine.proposer, Both) else engine.proposer
    if isinstance(drafter, DraftRunner):
        drafter.check()
        assert drafter.usage == 0.0


def test_torch_computes_drafts_where_numba_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr("lightwork.decode.proposers.draft_model.compiles", lambda place: False)
    load = requests(1.0, num=4) * 2
    _, seqs = serve([SAME], load)
    assert texts(seqs) == texts(serve([], load)[1])
    assert sum(seq.accepted for seq in seqs) > 0.95 * sum(seq.drafted for seq in seqs) > 0


def test_penalties_and_filters_are_the_drafts_too() -> None:
    """So a draft model that is the target stays right."""
    asked: dict[str, Any] = {"top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1, "frequency_penalty": 0.2}
    load = requests(0.8, num=2, **asked)
    _, seqs = serve([SAME], load)
    assert texts(seqs) == texts(serve([], load)[1])
    assert all(0 < seq.accepted == seq.drafted for seq in seqs)


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.8, 1.0])
def test_steps_are_never_more_than_plain_decodings_and_as_many_as_the_closed_form_says(rate: float) -> None:
    class Instant:
        def stages(self, step: Step) -> list[float]:
            return [1.0]

    found = generate(Instant(), Pearl(inner=IidDrafts(rate=rate, k=5)))
    assert found.steps <= found.tokens
    assert found.tokens / found.steps == pytest.approx(tokens_per_step(rate, 5), rel=0.05)


class Listening(ThreadPoolExecutor):
    """Counts the integers of what is handed over, there and back."""

    def __init__(self) -> None:
        super().__init__(1)
        self.sizes: list[int] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(fn, *args, **kwargs)
        if fn.__name__ == "write":
            told: list[Edit] = args[0]
            there = sum(3 + len(edit.tokens) for edit in told)
            self.sizes.append(there + sum(map(len, future.result())))
        return future


@pytest.mark.parametrize("k", [2, 4])
def test_messages_are_few_token_ids(k: int) -> None:
    """Less than the drafts themselves once more: neither texts nor probabilities travel."""
    listening = Listening()
    target = Target(model="tiny:llama", on="cpu", max_seqs=1, max_len=512, beside=listening)
    drafter = Pearl(inner=DraftModel(k=k)).begin(target)
    kernel, model, kv = (
        Kernel(WallClock()),
        load_compiled("tiny:llama", precision=Stored()),
        KVCache(16, PAGE),
    )
    engine = Engine(
        kernel,
        LocalRunner(kernel, model, kv),
        kv,
        Sarathi(),
        limits=Limits(max_len=512),
        proposer=drafter,
        predict=lambda step: 1.0,
    )
    load = requests(1.0, num=1)
    run_load(engine, [0.0], load)
    model.close()
    assert len(listening.sizes) > OUTPUT / k
    assert max(listening.sizes) <= 2 * k + 2


def test_what_steps_have_no_rows_for_does_not_pile_up() -> None:
    """Text grows one token at a time, drafts three: they wait for rows, and no more are written meanwhile."""
    target = Target(model="", on="sim:a100", max_seqs=1, max_len=512, beside=ThreadPoolExecutor(1))
    drafter = Pearl(inner=IidDrafts(rate=1.0, k=3)).begin(target)
    (request,) = requests(0.0, num=1)
    seq = Seq(0, request, request.sampling, None, 0.0, [*request.prompt], len(request.prompt))
    for _ in range(9):
        assert not drafter.propose([seq], [0])[0].tokens
        seq.tokens.append(said(seq, len(seq.tokens)))
    known = len(seq.tokens)
    (draft,) = drafter.propose([seq], [64])
    assert list(draft.tokens) == [said(seq, known + i) for i in range(4)]


def test_nothing_runs_on_when_an_engine_has_been_closed() -> None:
    before = {*enumerate_threads()}
    serve([Pearl(inner=replace(SMALL, threads=2))], requests(0.0, num=1))
    left = [thread.name for thread in {*enumerate_threads()} - before]
    assert not [name for name in left if name.startswith(("drafts", "compute"))]


def test_what_left_is_forgotten_and_may_come_back() -> None:
    drafter: Drafter = Pearl(inner=SAME).begin(
        Target(model="tiny:llama", on="cpu", max_seqs=2, max_len=512, beside=ThreadPoolExecutor(1))
    )
    (request,) = requests(0.0, num=1)
    seq = Seq(7, request, request.sampling, None, 0.0, [*request.prompt], len(request.prompt))
    assert not drafter.propose([seq], [4])[0].tokens
    drafter.forget(7)
    drafter.forget(8)
    right = texts(serve([], [request])[1])[0]
    assert not drafter.propose([seq], [4])[0].tokens
    seq.tokens.append(right[0])
    assert list(drafter.propose([seq], [2])[0].tokens) == right[1:3]
    seq.tokens += right[1:4]
    assert list(drafter.propose([seq], [4])[0].tokens) == right[4:8]


def test_a_draft_of_another_vocabulary_is_refused_before_any_forward(tmp_path: Path) -> None:
    other = shutil.copytree(resolve("tiny:draft"), tmp_path / "other")
    (other / "model.safetensors").unlink()
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    first, second = list(vocab)[-2:]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(
        SpecError, match=r"vocabularies.*other has 580 tokens and tiny:llama 580; .* is token 5.* and 5"
    ):
        serve([DraftModel(model=str(other))], requests(0.0, num=1))
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 640}), encoding="utf-8")
    with pytest.raises(SpecError, match=r"other has 640 tokens and tiny:llama 580"):
        serve([Pearl(inner=DraftModel(model=str(other)))], requests(0.0, num=1))


@pytest.mark.parametrize(
    "text", ["DraftModel(k=0)", "DraftModel(k=65)", "DraftModel(gb=0.0)", "Pearl(inner=Pearl)"]
)
def test_impossible_settings_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"DraftModel cannot|Pearl around Pearl"):
        parse(text)
    with pytest.raises(RangeError):
        Pearl(inner=DraftModel(k=0))


def test_a_draft_model_needs_room_and_a_real_place() -> None:
    with pytest.raises(CapacityError, match="no block"):
        serve([replace(SMALL, gb=1e-6)], requests(0.0, num=1))
    with pytest.raises(SpecError, match="simulated"):
        Plan(on="sim:a100", use=(Pearl(inner=SMALL),)).techniques()
