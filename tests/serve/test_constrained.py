"""Outputs are what their constraint says, and the same however they were computed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

from lightwork.decode.constraints import Constraint, grammars
from lightwork.decode.proposers import ROOT, Draft
from lightwork.decode.proposers.cascade import Cascade
from lightwork.decode.proposers.draft_model import DraftModel
from lightwork.decode.proposers.forced import Forced
from lightwork.decode.proposers.ngram import Ngram
from lightwork.decode.proposers.ppd import PPD
from lightwork.decode.sampling import Sampling
from lightwork.decode.verifiers.relaxed_lossy import RelaxedLossy
from lightwork.errors import ConstraintError, InvariantError
from lightwork.memory.kv import KVCache
from lightwork.models import load_compiled, resolve
from lightwork.models.precisions.stored import Stored
from lightwork.models.tokenizer import Tokenizer
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.engine import Engine
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.opening import open_one
from lightwork.serve.plan import Plan
from lightwork.serve.schedulers import Chunk, Step
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.scores import LogitScores
from lightwork.serve.sequence import Limits, Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load

pytest.importorskip("llguidance")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
NESTED = {
    "type": "object",
    "properties": {
        "colours": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1, "maxItems": 3},
        "ok": {"type": "boolean"},
        "what": {"anyOf": [{"const": "nothing"}, {"type": "null"}, {"$ref": "#/$defs/code"}]},
    },
    "required": ["colours", "ok", "what"],
    "additionalProperties": False,
    "$defs": {"code": {"type": "string", "pattern": "^[a-z]{2,3}-[0-9]{2}$"}},
}
SCHEMAS = [PERSON, NESTED]
CONSTRAINTS = [
    *(Constraint(kind="json_schema", text=json.dumps(schema)) for schema in SCHEMAS),
    Constraint(kind="regex", text=r"[A-Z][a-z]{2,6} \d{1,3}(, again){0,2}\."),
    Constraint(kind="choice", text='["yes", "no", "yes, certainly"]'),
    Constraint(kind="lark", text='start: "[" item ("," item)~0..2 "]"\nitem: /[0-9]{1,2}/ | "x"'),
]

NEW = Constraint(kind="regex", text="[a-f]{199}")


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer(resolve("tiny:llama"))


def holds(constraint: Constraint, text: str) -> bool:
    if constraint.kind == "json_schema":
        jsonschema = pytest.importorskip("jsonschema")
        jsonschema.validate(json.loads(text), json.loads(constraint.text))
        return True
    if constraint.kind == "choice":
        return text in json.loads(constraint.text)
    pattern = constraint.text if constraint.kind == "regex" else r"\[(\d{1,2}|x)(,(\d{1,2}|x)){0,2}\]"
    return re.fullmatch(pattern, text) is not None


def requests(num: int = 15, *, temperature: float = 1.0, **sampling: Any) -> list[Request]:
    """Every third is free; the others have a constraint in turn."""
    made = []
    for i in range(num):
        prompt = tokenizer().chat([{"role": "user", "content": f"Question {i % 4}: say something"}])
        constraint = None if i % 3 == 2 else CONSTRAINTS[(i - i // 3) % len(CONSTRAINTS)]
        how = Sampling(temperature=temperature, seed=100 * i, **sampling)
        ends = tokenizer().eos_ids
        made.append(
            Request(prompt=tuple(prompt), max_tokens=80, sampling=how, stop_ids=ends, constraint=constraint)
        )
    return made


def open_engine(*use: object, **plan: Any) -> Engine:
    """Of the built-in model, where rows of drafts cost nothing."""
    kernel = Kernel(WallClock(), trace=Trace("real: cpu"))
    settings = {"max_len": 256, "threads": 1, **plan}
    return open_one(Plan(use=use, **settings), kernel, predict=lambda step: 1.0)[0]


def serve(engine: Engine, load: Sequence[Request]) -> list[Seq]:
    seqs = run_load(engine, [0.0] * len(load), load)
    engine.close()
    engine.kv.check()
    assert engine.kv.free == engine.kv.total
    return seqs


def outputs(seqs: Sequence[Seq]) -> list[tuple[list[int], str | None]]:
    return [(seq.tokens[seq.prompt_len :], seq.finished) for seq in seqs]


def text(seq: Seq) -> str:
    said = [token for token in seq.tokens[seq.prompt_len :] if token not in seq.request.stop_ids]
    return tokenizer().decode(said)


@cache
def plain(temperature: float) -> list[tuple[list[int], str | None]]:
    """One request at a time, nothing shared, nothing guessed."""
    engine = open_engine(prefix_cache=False)
    return [outputs(run_load(engine, [0.0], [request]))[0] for request in requests(temperature=temperature)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_output_is_what_was_asked_for(temperature: float) -> None:
    load = [request for request in requests(30, temperature=temperature) if request.constraint is not None]
    for seq in serve(open_engine(), load):
        assert seq.finished == "stop"
        assert holds(seq.request.constraint, text(seq)), text(seq)  # type: ignore[arg-type]


WAYS: dict[str, tuple[tuple[object, ...], dict[str, Any]]] = {
    "together": ((), {}),
    "chunked": ((Sarathi(chunk=16),), {}),
    "preempted": ((Sarathi(chunk=32),), {"kv_bytes": 2_000_000, "prefix_cache": False}),
    "ahead": ((), {"depth": 2}),
    "copies": ((Ngram(k=4),), {}),
    "forced": ((Forced(),), {}),
    "forced, else a draft model": ((Cascade(first=Forced(), then=DraftModel(k=3)),), {}),
    "trees with probes": ((PPD(k=8),), {}),
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("way", WAYS)
def test_texts_do_not_depend_on_how_they_are_computed(way: str, temperature: float) -> None:
    """With and without constraints beside each other."""
    use, plan = WAYS[way]
    engine = open_engine(*use, **plan)
    seqs = serve(engine, requests(temperature=temperature))
    assert outputs(seqs) == plain(temperature)
    assert any(seq.num_preempted for seq in seqs) == (way == "preempted")
    if engine.proposer is not None:
        assert sum(seq.drafted for seq in seqs if seq.request.constraint is not None) > 0
        assert sum(seq.accepted for seq in seqs) > 0


def test_free_texts_are_those_without_constraints_beside_them() -> None:
    load = [request for request in requests(temperature=1.0) if request.constraint is None]
    alone = outputs(serve(open_engine(), load))
    assert alone == [
        said for request, said in zip(requests(), plain(1.0), strict=True) if not request.constraint
    ]


def test_what_is_certain_costs_no_steps_of_its_own_and_always_holds() -> None:
    request = requests(1, temperature=0.0)[0]
    steps = {}
    for use in ((), (Forced(),)):
        engine = open_engine(*use)
        (seq,) = serve(engine, [request])
        steps[use] = engine.steps
        assert seq.accepted == seq.drafted
    assert steps[Forced(),] <= steps[()] - 5


def test_penalties_filters_and_biases_act_among_what_is_allowed() -> None:
    settings: list[dict[str, Any]] = [
        {"top_k": 3, "top_p": 0.7},
        {"min_p": 0.2},
        {"frequency_penalty": 1.5, "repetition_penalty": 1.2},
        {"logit_bias": tuple((token, 50.0) for token in tokenizer().encode("zebra"))},
    ]
    load = [request for how in settings for request in requests(3, **how) if request.constraint]
    right = outputs(serve(open_engine(), load))
    seqs = serve(open_engine(Ngram(k=3)), load)
    assert outputs(seqs) == right
    for seq in seqs:
        assert holds(seq.request.constraint, text(seq))  # type: ignore[arg-type]


def test_a_lossy_verifier_keeps_to_the_grammar() -> None:
    load = [request for request in requests(temperature=0.0) if request.constraint is not None]
    for seq in serve(open_engine(DraftModel(k=3), RelaxedLossy(beta=4, tau=9.0)), load):
        assert holds(seq.request.constraint, text(seq))  # type: ignore[arg-type]


def test_an_output_that_is_cut_says_so() -> None:
    request = Request(
        prompt=(5, 6, 7), max_tokens=3, sampling=Sampling(temperature=0.0), constraint=CONSTRAINTS[0]
    )
    (seq,) = serve(open_engine(), [request])
    assert (seq.num_output, seq.finished) == (3, "length")


def test_probabilities_are_shares_of_what_is_allowed() -> None:
    class Told:
        def prompt(self, seq: Seq, picks: Any) -> None: ...

        def tokens(self, seq: Seq, picks: Any) -> None:
            told.extend(picks)

        def finish(self, seq: Seq, reason: str, error: Exception | None) -> None: ...

    told: list[Any] = []
    request = Request(
        prompt=(5, 6, 7),
        max_tokens=9,
        sampling=Sampling(temperature=0.0, logprobs=5),
        constraint=Constraint(kind="choice", text='["a", "b", "c"]'),
    )
    engine = open_engine()
    run_load(engine, [0.0], [request], [Told()])
    (pick,) = told
    assert sorted(tokenizer().decode([token]) for token, _ in pick.top) == ["a", "b", "c"]
    assert sum(np.exp([logprob for _, logprob in pick.top])) == pytest.approx(1.0)


def test_what_cannot_be_compiled_is_refused_before_it_is_queued() -> None:
    engine = open_engine()
    with pytest.raises(ConstraintError, match="regex"):
        engine.submit(Request(prompt=(1,), max_tokens=4, constraint=Constraint(kind="regex", text="(a")))
    assert engine.num_unfinished == 0


def test_nothing_real_is_said_without_a_matcher() -> None:
    """An engine by hand that compiles nothing: the request fails, and those beside it do not."""
    kernel, model, kv = Kernel(WallClock()), load_compiled("tiny:llama", precision=Stored()), KVCache(16, 64)
    failed: list[Exception | None] = []

    class Told:
        def prompt(self, seq: Seq, picks: Any) -> None: ...

        def tokens(self, seq: Seq, picks: Any) -> None: ...

        def finish(self, seq: Seq, reason: str, error: Exception | None) -> None:
            failed.append(error)

    engine = Engine(kernel, LocalRunner(kernel, model, kv), kv, Sarathi(), limits=Limits(max_len=99))
    load = [Request(prompt=(1, 2), max_tokens=4, constraint=c) for c in (CONSTRAINTS[0], None)]
    held, free = run_load(engine, [0.0, 0.0], load, [Told(), Told()])
    assert (held.num_output, held.finished, free.finished) == (0, "error", "length")
    assert sorted(map(type, failed), key=str) == sorted([InvariantError, type(None)], key=str)


def test_nodes_of_a_tree_are_chosen_by_the_state_after_their_path() -> None:
    """Also where the logits may not be written, and behind a node that the grammar refuses."""
    words = tokenizer()
    a, b, c, z = (words.encode(letter)[0] for letter in "abcz")
    constraint = Constraint(kind="regex", text="a(b|c)+z")
    how = Sampling(temperature=0.0)
    seq = Seq(0, Request(prompt=(1,), max_tokens=9, constraint=constraint), how, None, 0.0, [1, a], 1, 1)
    seq.matcher = grammars(words, words.vocab_size).matcher(constraint)
    logits = np.random.default_rng(0).normal(0, 3, (5, words.vocab_size)).astype(np.float32)
    logits.flags.writeable = False
    tree = Draft((b, a, c, z), (ROOT, ROOT, 0, 0))
    scores = LogitScores(Step(chunks=[Chunk(seq, 1, 1)], drafts=[tree]), logits, [0])

    def best(row: int, *allowed: int) -> int:
        return max(allowed, key=lambda token: logits[row, token])

    multiples = [t for t in range(words.vocab_size) if re.fullmatch("[bc]+", words.decode([t]))]
    whole = [t for t in range(words.vocab_size) if re.fullmatch("[bc]+z", words.decode([t]))]
    later = [t for t in range(words.vocab_size) if re.fullmatch("[bc]*z", words.decode([t]))]
    assert scores.pick(0, ROOT, ()).token == best(0, *multiples, *whole)
    assert scores.pick(0, 0, (b,)).token == best(1, *multiples, *later)
    assert scores.pick(0, 2, (b, c)).token == best(3, *multiples, *later)
    assert scores.pick(0, 3, (b, z)).token in words.eos_ids


@pytest.mark.parametrize("use", ["Replicas(copies=2)", "PrefillDecode()"])
def test_processes_say_the_same_and_lose_nothing(use: str, opened: Callable[..., Any]) -> None:
    import os
    import signal

    fleet = opened(use, prefix_cache=False)
    kernel, seqs, left = fleet.kernel, [], []

    async def main() -> None:
        for request in requests(temperature=1.0):
            seqs.extend(fleet.submit(request))
        left.extend(fleet.submit(Request(prompt=(1, 2), max_tokens=200, constraint=NEW)))
        fleet.cancel(left)  # while its constraint is compiled
        while sum(seq.num_output for seq in seqs) < 40:
            await kernel.sleep(0.001)
        os.kill(fleet.engines[1].child.process.pid, signal.SIGKILL)
        await fleet.drained()

    serving = kernel.spawn(fleet.run())
    kernel.run(main())
    serving.cancel()
    assert outputs(seqs) == plain(1.0)
    assert outputs(left) == [([], "cancelled")]
    assert [member.requests for member in fleet.members] == [0, 0]


@pytest.fixture
def opened() -> Any:
    import os

    if not hasattr(os, "memfd_create"):
        pytest.skip("needs Linux")
    models: list[Any] = []

    def make(*use: object, **plan: Any) -> Any:
        from lightwork.serve.deployment import open_deployment

        kernel = Kernel(WallClock(), trace=Trace("real: processes"))
        fleet, model, _ = open_deployment(Plan(use=use, max_len=256, **plan), kernel)
        models.append(model)
        return fleet

    yield make
    for model in models:
        model.close()
