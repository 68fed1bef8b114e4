"""Served with trees of guesses, texts and their log-probabilities are those of plain decoding, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("torch")

from lightwork import models
from lightwork.decode.proposers import ROOT, Draft, Text
from lightwork.decode.proposers.ppd import PPD
from lightwork.decode.sampling import Pick, Sampling
from lightwork.decode.verifiers import Verdict
from lightwork.memory.kv import KVCache
from lightwork.models.compiled import CompiledModel
from lightwork.models.precisions import Precision
from lightwork.models.precisions.quant import Quant
from lightwork.models.precisions.stored import Stored
from lightwork.models.prompt_tokens import FILE, PromptTokens, write_prompt_tokens
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.engine import Engine
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.opening import open_one
from lightwork.serve.plan import Plan
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Limits, Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load

Make = Callable[..., Path]
Told = list[list[Pick]]


@dataclass
class Picks:
    """Keeps what a sequence was told."""

    picks: list[Pick] = field(default_factory=list)

    def prompt(self, seq: Seq, picks: Sequence[Pick]) -> None: ...

    def tokens(self, seq: Seq, picks: Sequence[Pick]) -> None:
        self.picks += picks

    def finish(self, seq: Seq, reason: str, error: Exception | None) -> None: ...


@dataclass
class Branching:
    """Trees that hold the right tokens somewhere, between wrong ones. said: the right texts, by prompt."""

    said: dict[tuple[int, ...], list[int]]
    vocab_size: int
    k: int = 16
    rng: Random = field(default_factory=lambda: Random(0))

    def gain(self, text: Text, rate: float) -> list[float]:
        return [0.5] * self.k

    def propose(self, texts: Sequence[Text], rows: Sequence[int]) -> list[Draft]:
        return [self._tree(text, num) for text, num in zip(texts, rows, strict=True)]

    def _tree(self, text: Text, rows: int) -> Draft:
        right = self.said[tuple(text.tokens[: text.prompt_len])][len(text.tokens) - text.prompt_len :]
        tokens: list[int] = []
        parents: list[int] = []
        spine = [ROOT]
        for node in range(rows):
            if len(spine) <= min(4, len(right)) and self.rng.random() < 0.4:
                parents.append(spine[-1])
                tokens.append(right[len(spine) - 1])
                spine.append(node)
            else:
                parents.append(self.rng.randint(ROOT, node - 1))
                tokens.append(self.rng.randrange(self.vocab_size))
        return Draft(tuple(tokens), tuple(parents))

    def accept(self, texts: Sequence[Text], verdicts: Sequence[Verdict]) -> None: ...

    def forget(self, seq_id: int) -> None: ...

    def close(self) -> None: ...


def asked(temperature: float) -> list[Request]:
    """Texts that end behind the first page, the fourth and the fifth, so that drafts cross them."""
    rng, how = np.random.default_rng(0), Sampling(temperature=temperature, seed=3, logprobs=2)
    return [
        Request(prompt=(*rng.integers(0, 256, num).tolist(),), max_tokens=40, sampling=how)
        for num in (40, 90, 230, 297)
    ]


def engine_of(model: CompiledModel, drafter: Branching | None) -> Engine:
    kernel, kv = Kernel(WallClock()), KVCache(40, 64)
    return Engine(
        kernel,
        LocalRunner(kernel, model, kv),
        kv,
        Sarathi(chunk=512),
        limits=Limits(max_len=400, max_seqs=8),
        proposer=drafter,
        vocab_size=model.spec.vocab_size,
        predict=lambda step: 1.0,
    )


def told_by(engine: Engine, requests: Sequence[Request]) -> tuple[Told, list[Seq]]:
    sinks = [Picks() for _ in requests]
    seqs = run_load(engine, [0.0] * len(requests), requests, sinks)
    engine.kv.check()
    assert engine.kv.free == engine.kv.total
    return [sink.picks for sink in sinks], seqs


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize(
    ("family", "dtype", "precision"),
    [
        ("llama", "float32", Stored()),
        ("llama", "bfloat16", Quant(bits=16)),
        ("mistral", "float32", Quant(bits=8, group=32, kv_bits=8)),
        ("mixtral", "float32", Stored()),
    ],
    ids=["float32", "bfloat16", "int8 and a window", "experts"],
)
def test_trees_change_neither_texts_nor_their_logprobs(
    checkpoint: Make, family: str, dtype: str, precision: Precision, temperature: float
) -> None:
    folder = str(checkpoint(family, dtype=dtype, max_position_embeddings=512))
    model = models.load_compiled(folder, precision=precision)
    requests = asked(temperature)
    plain, seqs = told_by(engine_of(model, None), requests)
    said = {r.prompt: seq.tokens[seq.prompt_len :] for r, seq in zip(requests, seqs, strict=True)}
    for threads in (1, 2, 3):
        model.set_threads(threads)
        ours, seqs = told_by(engine_of(model, Branching(said, model.spec.vocab_size)), requests)
        assert ours == plain
        assert sum(seq.accepted for seq in seqs) > 40
    model.close()


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_prompt_tokens_change_no_logprob(checkpoint: Make, tmp_path: Path, temperature: float) -> None:
    folder = str(checkpoint("llama", max_position_embeddings=512))
    prompts = np.random.default_rng(1).normal(0, 0.3, (3, models.read_shape(folder).hidden_size))
    accuracy = np.array([[0.5, 0.2, 0.1], [0.4, 0.2, 0.1], [0.3, 0.2, 0.1]])
    write_prompt_tokens(tmp_path / FILE, PromptTokens(prompts.astype(np.float32), accuracy))
    told = []
    for use in ((), (PPD(prompts=str(tmp_path / FILE), k=24),)):
        plan = Plan(model=folder, use=use, threads=2, max_len=400)
        engine, opened, _ = open_one(plan, Kernel(WallClock()), predict=lambda step: 1.0)
        told.append(told_by(engine, asked(temperature))[0])
        opened.close()
    assert told[0] == told[1]
