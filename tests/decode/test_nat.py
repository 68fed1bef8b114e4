"""Blocks that a model without an order has filled: the text of plain decoding, and nothing left behind."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from lightwork import models
from lightwork.decode.proposers import Target
from lightwork.decode.proposers.nat import BlockDrafter, Nat
from lightwork.decode.sampling import Sampling
from lightwork.decode.verifiers.relaxed_lossy import RelaxedLossy
from lightwork.errors import CheckpointError, RangeError, SpecError
from lightwork.memory.kv import KVCache
from lightwork.models.block_filler import MASK
from lightwork.runtime.kernel import Kernel
from lightwork.serve.engine import Engine
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.plan import Plan
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Limits, Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load
from lightwork.train.seq2seq import initial_seq2seq, mbart_spec, save_seq2seq
from lightwork.train.vocabulary import build_tokenizer

WORDS = build_tokenizer([MASK], [])
SPEC = mbart_spec(
    vocab_size=WORDS.get_vocab_size(),
    hidden_size=16,
    num_layers=2,
    encoder_layers=1,
    num_heads=2,
    num_kv_heads=2,
    head_size=8,
    ffn_size=16,
    max_len=64,
)
RNG = np.random.default_rng(0)
SOURCES = [tuple(RNG.integers(8, 200, n).tolist()) for n in (1, 9, 30, 17)]


@dataclass
class Text:
    tokens: list[int]
    id: int = 0
    prompt_len: int = 0
    sampling: Sampling = field(default_factory=Sampling)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target of random weights; as a drafter it fills masks with much that the target would not say."""
    made = tmp_path_factory.mktemp("nat")
    save_seq2seq(made, initial_seq2seq(SPEC, 0), SPEC, WORDS)
    return made


def target(folder: Path | str) -> Target:
    return Target(model=str(folder), on="cpu", max_seqs=8, max_len=64, beside=ThreadPoolExecutor(1))


def drafter(folder: Path, k: int = 8) -> BlockDrafter:
    return Nat(model=str(folder), k=k).begin(target(folder))


def served(folder: Path, sampling: Sampling, blocks: int = 200, **parts: Any) -> list[Seq]:
    model = models.load_seq2seq(str(folder))
    kernel, kv = Kernel(), KVCache(blocks, 4, prefix_cache=False)
    runner, limits = LocalRunner(kernel, model, kv), Limits(max_len=SPEC.max_len)
    engine = Engine(kernel, runner, kv, Sarathi(), limits=limits, predict=lambda step: 1.0, **parts)
    requests = [
        Request(
            prompt=model.prompt(source),
            encoded=len(source),
            max_tokens=24,
            sampling=replace(sampling, seed=i),
        )
        for i, source in enumerate(SOURCES * 2)
    ]
    seqs = run_load(engine, [0.0] * len(requests), requests)
    kv.check()
    return seqs


def outputs(seqs: Sequence[Seq]) -> list[list[int]]:
    return [seq.tokens[seq.prompt_len :] for seq in seqs]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_texts_are_those_of_plain_decoding(folder: Path, temperature: float) -> None:
    how, drafts = Sampling(temperature=temperature), drafter(folder)
    plain = outputs(served(folder, how))
    seqs = served(folder, how, proposer=drafts)
    assert outputs(seqs) == plain
    assert sum(seq.drafted for seq in seqs) > 0
    assert outputs(served(folder, how, proposer=drafts, blocks=30)) == plain
    assert not drafts._sources


def test_blocks_have_the_rows_that_were_given_and_end_with_the_context(folder: Path) -> None:
    drafts, (source, other) = drafter(folder), SOURCES[1:3]
    start = models.load_seq2seq(str(folder)).start
    texts = [Text([*source, start, 40], 0, len(source) + 1), Text([*other, start], 1, len(other) + 1)]
    whole = drafts.propose(texts, [8, 8])
    assert [len(draft) for draft in whole] == [8, 8]
    for rows in ([3, 8], [0, 5], [0, 0]):
        found = drafts.propose(texts, rows)
        assert [draft.tokens for draft in found] == [
            draft.tokens[:n] for draft, n in zip(whole, rows, strict=True)
        ]
    long = Text([*source, start, *[40] * 60], 2, len(source) + 1)
    full = Text([*source, start, *[40] * 63], 3, len(source) + 1)
    assert [len(draft) for draft in drafts.propose([long, full], [8, 8])] == [3, 0]
    drafts.forget(0)
    assert drafts.propose(texts, [8, 8]) == whole


def test_the_lossy_verifier_keeps_more_of_the_same_blocks(folder: Path) -> None:
    """And what it puts out is not plain decoding's, which is why it says so in its name."""
    greedy = Sampling(temperature=0.0)
    exact = served(folder, greedy, proposer=drafter(folder))
    anything = RelaxedLossy(beta=SPEC.vocab_size, tau=1e6)
    lossy = served(folder, greedy, proposer=drafter(folder), verifier=anything)
    assert sum(seq.accepted for seq in lossy) == sum(seq.drafted for seq in lossy)
    assert outputs(lossy) != outputs(exact)


def test_what_cannot_draft_for_a_target_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="vocabularies of draft and target differ"):
        Nat(model=str(folder)).begin(target("tiny:llama"))
    words = build_tokenizer([], [])
    spec = replace(SPEC, vocab_size=words.get_vocab_size())
    save_seq2seq(tmp_path, initial_seq2seq(spec, 0), spec, words)
    with pytest.raises(CheckpointError, match="has no <mask>"):
        Nat(model=str(tmp_path)).begin(target(tmp_path))
    with pytest.raises(SpecError, match="has no encoder"):
        Nat(model="tiny:llama").begin(target("tiny:llama"))
    with pytest.raises(SpecError, match="a plan serves decoders"):
        Plan(use=("Nat(k=4)",)).techniques()
    for k in (0, 65):
        with pytest.raises(RangeError, match="Nat cannot"):
            Nat(k=k)
